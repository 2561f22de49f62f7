"""Likeness of texts: word 3-grams, their Jaccard similarity, and MinHash signatures that stand for it.

MinHash: A. Broder, "On the resemblance and containment of documents", 1997. Bands: J. Leskovec, A. Rajaraman,
J. Ullman, "Mining of Massive Datasets", chapter 3. Sketches of a few bits: P. Li, A. C. König, "b-Bit Minwise
Hashing", 2010. Nothing here is an identity: signatures only propose, Jaccard over shingles decides.
"""

import re
from collections.abc import Sequence

import daft  # noqa: TID253 (only stage programs load this module)
import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

HASHES = 128
WORDS = 3
KEY, SKETCH = 0, [1, 2, 3, 4]  # columns of a signature; its bands follow
FIRST_BAND = 5
# Scripts that put no space between words: there each character counts as a word.
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)
_SHARES_A_BAND = 0.99


def normal(text: str) -> str:
    """The text as likeness sees it: case and white space do not count, one space between words."""
    if not text.isascii():
        text = _UNSPACED.sub(r" \1 ", text)
    return " ".join(text.casefold().split())


def ngrams(text: str, words: int) -> NDArray[np.int64]:
    """A text's word n-grams in their order, each as 63 bits of its xxh3.

    Args:
        text: as `normal` gives it. With fewer words than `words` the whole text is its only n-gram.
    """
    data = text.encode()
    spaces = np.flatnonzero(np.frombuffer(data, np.uint8) == ord(" "))
    starts = [0, *(spaces + 1).tolist()]
    ends = [*spaces[words - 1 :].tolist(), len(data)]
    hashed = xxhash.xxh3_64_intdigest
    return np.fromiter((hashed(data[s:e]) >> 1 for s, e in zip(starts, ends, strict=False)), np.int64)


def shingles(text: str) -> NDArray[np.int64]:
    """The set of a text's word 3-grams, ascending; see `ngrams`."""
    return np.unique(ngrams(text, WORDS))


def jaccard(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """What two sets of shingles share, of what both hold together: 0 to 1."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def rows_of_a_band(threshold: float) -> int:
    """MinHashes in a band: the most with which a pair at `threshold` still shares a band (p >= 0.99)."""
    fitting = [
        rows for rows in range(2, 17) if 1 - (1 - threshold**rows) ** (HASHES // rows) >= _SHARES_A_BAND
    ]
    return max(fitting, default=2)


def signatures(texts: Sequence[str], threshold: float = 0.8) -> NDArray[np.uint64]:
    """What `near.near_pairs` and `contamination.Contamination` compare, for each text.

    At 0.8 that is 21 bands of 6 MinHashes: a pair at 0.8 shares one with p = 0.998, a pair at 0.4 with 0.08.
    The columns lie each in one piece (Fortran order), and `np.save` keeps that: a band is read alone.

    Returns:
        uint64 [texts, 5 + bands]: a key (xxh3 of the normal text), a sketch of 128 times two bits in four
        words, and the hash of each band.
    """
    rows = rows_of_a_band(threshold)
    bands = HASHES // rows
    signed = np.zeros((len(texts), FIRST_BAND + bands), np.uint64, order="F")
    if not len(texts):
        return signed
    plain = [normal(text) for text in texts]
    signed[:, KEY] = np.fromiter((xxhash.xxh3_64_intdigest(t.encode()) for t in plain), np.uint64)
    series = daft.Series.from_arrow(pa.array(plain, pa.large_string()))
    listed = series.minhash(HASHES, WORDS, 1, "xxhash").to_arrow()
    hashes = np.asarray(listed.flatten(), np.uint32).reshape(len(texts), HASHES)
    signed[:, SKETCH] = _sketch(hashes)
    banded = hashes[:, : bands * rows].reshape(len(texts), bands, rows)
    mixed = np.zeros((len(texts), bands), np.uint64)
    for row in range(rows):
        mixed = mix(mixed ^ banded[:, :, row])
    signed[:, FIRST_BAND:] = mixed
    return signed


def mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a fixed one-to-one scattering of 64 bits."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _sketch(hashes: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Two bits of each hash, [n, 128] to [n, 4]. A minimum's own bits are not even: they are scattered."""
    two = ((hashes * np.uint32(0x9E3779B1)) >> np.uint32(30)).astype(np.uint8)
    packed = two[:, 0::4] | two[:, 1::4] << 2 | two[:, 2::4] << 4 | two[:, 3::4] << 6
    return packed.view(np.uint64)


def differing(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """In how many of 128 places two sketches differ; a, b: [4, n]."""
    apart = a ^ b
    apart = (apart | (apart >> np.uint64(1))) & np.uint64(0x5555555555555555)
    return np.bitwise_count(apart).sum(axis=0, dtype=np.uint8)


def most_differing(threshold: float, deviations: float) -> int:
    """Places in which the sketches of a pair at `threshold` differ: the mean and so many deviations more."""
    mean = HASHES * 0.75 * (1 - threshold)
    return int(mean + deviations * (mean * (1 - mean / HASHES)) ** 0.5)
