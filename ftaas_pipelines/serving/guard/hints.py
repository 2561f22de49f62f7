"""Whether a text can hold anything at all that a detector sees: cheap, and never wrong when it says no.

The data plane asks its gates with RE2, of whole batches. Here is one text and Python's `re`, in which a gate
costs as much as the detector. What follows is true of every finding: a test makes texts of each detector's
own patterns and holds it to that.
"""

import re

# In small letters. A secret without any of these is a row of at least 20 characters without white space.
SIGNS = ("pass", "pwd", "contrase", "secret", "key", "token", "bearer", "://", "eyj", "xox")
_LONG = 20
# Four digits, little between them: fewer are no number of a person's.
_DIGITS = re.compile(r"[0-9](?:[A-Z ./()+-]{0,3}[0-9]){3}")
_AT = re.compile(r"@|[\[(] ?at ?[\])]", re.IGNORECASE)


def hinted(text: str) -> set[str]:
    """The names of the detectors that may see something in a text, of those that this module knows."""
    found: set[str] = set()
    small = text.casefold()
    if any(sign in small for sign in SIGNS) or any(len(row) >= _LONG for row in small.split()):
        found.add("secret")
    if _AT.search(text):
        found.add("email")
    if _DIGITS.search(text):
        found |= {"credit_card", "national_id", "phone"}
    elif "pass" in small or "pasap" in small:  # a passport's number may have no digits
        found.add("national_id")
    return found


KNOWN = frozenset({"secret", "email", "credit_card", "national_id", "phone"})
