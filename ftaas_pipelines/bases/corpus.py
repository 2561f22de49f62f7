"""Pre-training text that is on every Python machine: CPython's docstrings and pydoc topics.

The text is under the PSF licence. It is read from the running interpreter's standard library,
in path order, so that one Python version always gives the same bytes.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sysconfig
import warnings
from pathlib import Path

# Not documentation: the test suite, other people's wheels, generated or obsolete trees.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
MIN_CHARACTERS = 40
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _docstrings(path: Path) -> list[str]:
    """Return the docstrings of one source file, in source order."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []  # lib2to3 ships files in old syntax and odd encodings on purpose
    nodes = [node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return [inspect.cleandoc(ast.get_docstring(node) or "") for node in nodes]


def _pydoc_topics() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name].strip() for name in sorted(topics)]


def read_documents() -> list[str]:
    """Return every document once, in an order that depends on the Python version alone."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(
        path for path in stdlib.rglob("*.py") if not SKIPPED_FOLDERS & set(path.relative_to(stdlib).parts)
    )
    texts = [text for path in paths for text in _docstrings(path)] + _pydoc_topics()
    return list(dict.fromkeys(text for text in texts if len(text) >= MIN_CHARACTERS))


def read_sentences(documents: list[str]) -> list[str]:
    """Cut documents into plain prose sentences of 4 to 24 words, each once."""
    found: dict[str, None] = {}
    for document in documents:
        prose = re.sub(r"\s+", " ", document)
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", prose):
            if 4 <= len(sentence.split()) <= 24 and re.fullmatch(r"[A-Z][\w ,;'\"()\-]+[.!?]", sentence):
                found.setdefault(sentence)
    return list(found)


def digest(texts: list[str]) -> str:
    """Return the sha256 of the texts, to name in ``made.json`` exactly what was read."""
    return hashlib.sha256("\0".join(texts).encode("utf-8")).hexdigest()
