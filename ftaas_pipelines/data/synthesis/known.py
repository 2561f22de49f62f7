"""Whether a row says something new: neither equal nor nearly equal to a row that is known.

The same measure as `prepare` takes (`data/minhash.py`): Jaccard similarity of word 3-grams. 256-bit sketches
of all known texts are looked at, and the likest are compared by their words. Self-Instruct itself takes
ROUGE-L below 0.7; here a row is new exactly when `prepare` would not call it a near-duplicate.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ftaas_pipelines.data.likeness.minhash import (
    SKETCH,
    differing,
    jaccard,
    most_differing,
    normal,
    shingles,
    signatures,
)

_COMPARED = 64  # known texts whose words are compared, the likest first


class Known:
    """The texts that are known. Memory: each text and 48 bytes.

    Args:
        threshold: least Jaccard similarity that makes two texts near-duplicates.
    """

    def __init__(self, threshold: float):
        self._threshold = threshold
        self._prompts: set[bytes] = set()
        self._texts: list[str] = []
        self._sketches = np.empty((4, 1024), np.uint64)

    def add(self, prompts: Sequence[str], texts: Sequence[str]) -> None:
        """Know these rows.

        Args:
            prompts: `Record.normal_prompt` of each.
            texts: what near-duplicates are told by, of each.
        """
        self._prompts.update(map(_key, prompts))
        start, end = len(self._texts), len(self._texts) + len(texts)
        self._texts.extend(texts)
        if end > self._sketches.shape[1]:
            grown = np.empty((4, max(end, 2 * self._sketches.shape[1])), np.uint64)
            grown[:, :start] = self._sketches[:, :start]
            self._sketches = grown
        self._sketches[:, start:end] = self._sketch(texts)

    def like(self, prompt: str, text: str) -> str:
        """`duplicate` or `near_duplicate` where the row is known; empty where it is new."""
        if _key(prompt) in self._prompts:
            return "duplicate"
        apart = differing(self._sketches[:, : len(self._texts)], self._sketch([text]))
        likely = np.flatnonzero(apart <= most_differing(self._threshold, 3))
        nearest = likely[np.argsort(apart[likely], kind="stable")[:_COMPARED]]
        own = shingles(normal(text))
        alike = (jaccard(own, shingles(normal(self._texts[i]))) for i in nearest.tolist())
        return "near_duplicate" if any(likeness >= self._threshold for likeness in alike) else ""

    def _sketch(self, texts: Sequence[str]) -> NDArray[np.uint64]:
        return signatures(texts, self._threshold)[:, SKETCH].T


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
