"""The value behind `env:NAME` or `file:/path`. The YAML names the place; nothing prints the value."""

import os
from pathlib import Path

from ftaas_pipelines.errors import InputInvalid


def value(secret: str) -> str:
    """The secret's value; a file's without white space at its ends.

    Raises:
        InputInvalid: the variable is not set, or the file cannot be read, or it is empty.
    """
    kind, _, name = secret.partition(":")
    if kind == "env":
        found = os.environ.get(name, "")
    else:
        try:
            found = Path(name).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8"
            raise InputInvalid("the secret cannot be read", secret, why, "make the file readable") from None
    if not found:
        do = "set the variable where ftaas and its daemon run" if kind == "env" else "write it into the file"
        raise InputInvalid("the secret is not set", secret, do=do)
    return found


def hide(text: str, *values: str | None) -> str:
    """A text with each of the values blotted out: for the messages of libraries."""
    for secret in sorted({v for v in values if v}, key=len, reverse=True):
        text = text.replace(secret, "********")
    return text
