"""Small JSON files that only their owner may read."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from ftaas_pipelines.errors import InputInvalid


def passwords_file(home: Path) -> Path:
    """First passwords of the accounts that we made, by server and e-mail."""
    return home / "label_studio" / "people.json"


def read(path: Path) -> dict[str, Any]:
    """What the file holds; nothing when it is not there.

    Raises:
        InputInvalid: it is no JSON object.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputInvalid("is not a JSON object", str(path), do="restore it, or move it away")
    return found


def write(path: Path, value: dict[str, Any]) -> None:
    """Replace the file, whole or not at all; it is never readable by others, not even for a moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as sink:
        json.dump(value, sink, indent=1, sort_keys=True)
    temporary.replace(path)
