"""How far a text that is still growing can be judged for good: what a stream may let go of.

A cut is safe when no place that a rule will see in the whole text lies across it without being seen already.
What makes that so, kind by kind:

- A secret has no white space in it, so a cut behind white space is safe. A private key is the exception: from
  its first line on everything is held until its end has come.
- A person's number and an obfuscated e-mail (“ann [at] acme”) have, but such a place shows within `_SPREAD`
  characters of its start, and grows in smaller steps: a cut that far before the end lies behind it, or over
  what is seen. A plain e-mail may be longer, but has no white space.
- A word or phrase is as long as it is written in the policy, with any white space between its parts: a run of
  white space counts as one character here.
- A script without spaces (Chinese, Thai, …) would be held to the end of the paragraph. There a cut behind a
  letter is safe too, where nothing near is the sign of a secret or an address.
"""

import re
from collections.abc import Sequence

from ftaas_pipelines.serving.guard import hints
from ftaas_pipelines.serving.guard.spotting import Spot, Spotter

_SPREAD = 160
_WINDOW = 256  # characters before those that leave, in which words say what they are
_NEAR = 200  # a password has at most 128 characters, behind the word that says so
_AHEAD = 80  # an e-mail's name has at most 64
_BEHIND_SPACE = re.compile(r".*\s", re.DOTALL)
_BEHIND_LETTER = re.compile("[\\s\\S]*[\\s\u0e00-\U0010ffff]")
_HEADER = re.compile(r"-----BEGIN [^\n-]*")
_END = "-----END "


def window(text: str, gone: int) -> int:
    """Where to begin to look for places that end behind `gone`."""
    return _back(text, gone, _WINDOW)


def candidate(spotter: Spotter, text: str, gone: int) -> int:
    """A safe cut, but for what is seen across it; `gone`: nothing can be judged yet."""
    spread = max(_SPREAD if spotter.personal else 0, 2 * spotter.longest)
    until = _back(text, len(text), spread) if spread else len(text)
    if spotter.secret and (key := _open_key(text, gone, None)) is not None:
        until = min(until, key)
    if until <= gone:
        return gone
    cut = _BEHIND_LETTER.match(text, gone, until)
    if cut and not text[cut.end() - 1].isspace() and _signs_near(text, cut.end()):
        cut = _BEHIND_SPACE.match(text, gone, until)
    return cut.end() if cut else gone


def settled(spotter: Spotter, text: str, gone: int, until: int, seen: Sequence[Spot]) -> int:
    """The cut moved back before every place that lies across it, and before a key that is still open."""
    if spotter.secret and (key := _open_key(text, gone, seen)) is not None:
        until = min(until, key)
    while across := [spot.start for spot in seen if spot.start < until < spot.end]:
        until = min(across)
    return max(until, gone)


def _open_key(text: str, gone: int, seen: Sequence[Spot] | None) -> int | None:
    """The start of a private key whose end has not come; `seen` None: nobody has looked yet."""
    for header in _HEADER.finditer(text, gone):
        behind = text[header.end() : header.end() + 5]
        growing = header.end() + len(behind) == len(text) and "-----".startswith(behind)
        if growing and len(behind) < 5:
            return header.start()
        if "PRIVATE KEY" not in header[0] or behind != "-----" or '"' in text[header.end() :]:
            continue  # no key's first line; or one whose lines a quotation mark has ended
        if _END not in text[header.end() :]:
            return header.start()
        if seen is not None and not any(
            spot.start <= header.start() < spot.end and _END in text[header.end() : spot.end] for spot in seen
        ):
            return header.start()
    return None


def _signs_near(text: str, cut: int) -> bool:
    """Whether something around a cut, in its row of characters, may be the sign of a secret or address."""
    row = _BEHIND_SPACE.match(text, 0, cut)
    near = min(_back(text, cut, _NEAR), row.end() if row else 0)
    around = text[near : cut + _AHEAD].casefold()
    return text[cut - 1].isdecimal() or "@" in around or any(sign in around for sign in hints.SIGNS)


def _back(text: str, at: int, count: int) -> int:
    """The place `count` characters before, where a run of white space counts as one."""
    while at > 0 and count > 0:
        at -= 1
        if not (text[at].isspace() and at > 0 and text[at - 1].isspace()):
            count -= 1
    return at
