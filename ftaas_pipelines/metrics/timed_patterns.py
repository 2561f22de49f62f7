"""Searching with somebody's pattern in somebody else's text: no match may take for ever.

Python's `re` cannot be stopped outside the main thread. The `regex` library reads the same patterns,
backtracks less, and takes a limit. What runs into the limit is an error, not a score: a score that
depends on the speed of the machine could not be made again.
"""

import regex

LIMIT_S = 2.0


class TooSlow(Exception):
    """The limit was reached.

    Attributes:
        pattern: the pattern.
        seconds: the limit.
    """

    def __init__(self, pattern: str):
        super().__init__(pattern)
        self.pattern, self.seconds = pattern, LIMIT_S


def found(pattern: str, text: str, *, dot_all: bool = False) -> bool:
    """Whether the pattern is found in the text.

    Raises:
        TooSlow: it is not known after `LIMIT_S`.
    """
    try:
        # The library caches what it compiled.
        return regex.search(pattern, text, regex.DOTALL if dot_all else 0, timeout=LIMIT_S) is not None
    except TimeoutError as error:
        raise TooSlow(pattern) from error
