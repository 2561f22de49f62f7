"""`python -m benchmarks.near_duplicates`: near-duplicates on templated text against brute force.

Prints one JSON. The text: sentences of maintenance templates with slots (short ones; long ones whose rows
are all alike at 0.5 to 0.9), text by a Markov chain, and edits of all of them (words swapped, put in, left
out, case, punctuation). The truth: every pair whose word 3-grams have a Jaccard similarity of at least the
threshold, from the sparse product of the shingle incidence with itself.

What is counted, in pairs of rows:

    recall            true pairs whose two rows end in one group
    precision         pairs given as near-duplicates that are true (their similarity is exact, so 1.0)
    direct_recall     true pairs that are given as such; a large group is held together by fewer
    group_precision   of the pairs in one group, those in one group of the brute force too
    group_recall      of the pairs in one group of the brute force, those in one group
    candidates        pairs whose texts were compared; cpu_s is signatures and all that follows
    same_group_true   of the pairs in one group, those alike themselves: what chains (a like b like c) cost
"""

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from ftaas_pipelines.data.likeness import minhash, near
from ftaas_pipelines.data.likeness.exact import components

PARTS = ("pump", "gearbox", "main bearing", "coupling", "intake valve", "motor", "drive belt", "spindle",
         "hydraulic hose", "air filter", "level sensor", "frequency converter")  # fmt: skip
SIGNS = ("vibrates", "leaks oil", "runs hot", "makes a grinding noise", "stops without a message",
         "loses pressure", "draws too much current", "does not start")  # fmt: skip
DEEDS = ("replaced the seal", "tightened the bolts", "cleaned the housing", "filled up the coolant",
         "reset the controller", "changed the fuse", "aligned the shaft")  # fmt: skip
PLACES = ("line one", "line two", "the packing hall", "the paint shop", "the cold store", "dock four")
WORDS = tuple(dict.fromkeys(" ".join((*PARTS, *SIGNS, *DEEDS, *PLACES)).split()))
FILLING = (
    "please describe in a few sentences what the operator should check first before the machine is switched "
    "on again and write down which spare part is needed who may carry out the work how long it will take and "
    "whether the line has to stand still in the meantime thank you"
).split()


def templated(n: int, rng: random.Random, templates: int, words: int, slots: int, values: int) -> list[str]:
    """N rows of fixed sentences of `words` words, with `slots` places that take one of `values` each."""
    frames: list[list[str]] = []
    for _ in range(templates):
        frame = [rng.choice(FILLING + list(WORDS)) for _ in range(words)]
        for at in rng.sample(range(words), slots):
            frame[at] = ""
        frames.append(frame)
    pool = [f"{rng.choice(PARTS)} {rng.randrange(1000)}" for _ in range(values)]
    return [" ".join(word or rng.choice(pool) for word in rng.choice(frames)) for _ in range(n)]


def sentences(n: int, rng: random.Random) -> list[str]:
    """N rows as a maintenance log has them: short, few words differ."""
    frames: tuple[Callable[[], str], ...] = (
        lambda: (
            f"The {rng.choice(PARTS)} at {rng.choice(PLACES)} {rng.choice(SIGNS)} since "
            f"{rng.randrange(1, 24)} hours. What should I check first before I call the technician?"
        ),
        lambda: (
            f"Machine M-{rng.randrange(40)} reports error E{rng.randrange(30):03}: the {rng.choice(PARTS)} "
            f"{rng.choice(SIGNS)}. The last shift {rng.choice(DEEDS)}, but the fault came back. Suggest the "
            "next step and say whether the line must be stopped."
        ),
        lambda: (
            f"Summarise this work order: at {rng.choice(PLACES)} the team {rng.choice(DEEDS)} and then "
            f"{rng.choice(DEEDS)} because the {rng.choice(PARTS)} {rng.choice(SIGNS)}."
        ),
    )
    return [rng.choice(frames)() for _ in range(n)]


def markov(n: int, rng: random.Random) -> list[str]:
    """N rows of 30 to 90 words, each word likely after the one before it."""
    lexicon = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "en", "ir", "ost", "um", "elin", "aro")]
    after = {word: rng.choices(lexicon, k=6) for word in lexicon}
    rows: list[str] = []
    for _ in range(n):
        words = [rng.choice(lexicon)]
        while len(words) < rng.randrange(30, 90):
            words.append(rng.choice(after[words[-1]] if rng.random() < 0.9 else lexicon))
        rows.append(" ".join(words))
    return rows


def edited(text: str, rng: random.Random) -> str:
    """The text with one to three small changes."""
    words = text.split()
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(words) - 1)
        match rng.randrange(5):
            case 0:
                words[at], words[at + 1] = words[at + 1], words[at]
            case 1:
                words.insert(at, rng.choice(WORDS))
            case 2 if len(words) > 8:
                del words[at]
            case 3:
                words[at] = words[at].upper()
            case _:
                words[at] += rng.choice(",;!")
    return " ".join(words)


def make(n: int, seed: int = 1) -> dict[str, list[str]]:
    """About n rows of each kind of text, a third of each kind edits of others, distinct once normalised."""
    rng = random.Random(seed)
    base = n * 2 // 3
    texts = {
        "sentences": sentences(base, rng),
        "short_templates": templated(base, rng, templates=20, words=30, slots=3, values=30),
        "long_templates": templated(base, rng, templates=10, words=60, slots=5, values=60),
        "one_template": templated(base, rng, templates=1, words=60, slots=4, values=1000),
        "markov": markov(base, rng),
    }
    for kind, rows in texts.items():
        rows += [edited(rng.choice(rows[:base]), rng) for _ in range(n - base)]
        texts[kind] = list({minhash.normal(row): row for row in rows}.values())
    return texts


def brute_force(texts: list[str], threshold: float) -> set[tuple[int, int]]:
    """Every pair i < j at or above the threshold, by the product of the incidence with itself."""
    sets = [minhash.shingles(minhash.normal(text)) for text in texts]
    sizes = np.array([len(s) for s in sets])
    known, columns = np.unique(np.concatenate(sets), return_inverse=True)
    incidence = csr_array(
        (np.ones(len(columns), np.int32), columns, np.concatenate([[0], np.cumsum(sizes)])),
        shape=(len(sets), len(known)),
    )
    other = incidence.T.tocsr()
    pairs: set[tuple[int, int]] = set()
    for start in range(0, len(sets), 500):
        common = (incidence[start : start + 500] @ other).tocoo()
        i, j = common.row + start, common.col
        alike = (i < j) & (common.data >= threshold * (sizes[i] + sizes[j] - common.data) - 1e-9)
        pairs.update(zip(i[alike].tolist(), j[alike].tolist(), strict=True))
    return pairs


def found(texts: list[str], threshold: float, folder: Path, cuts: int = 3) -> near.Edges:
    """What the platform finds, the signatures in `cuts` files."""
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for part in np.array_split(np.arange(len(texts)), cuts):
        files.append(folder / f"{len(files)}.npy")
        np.save(files[-1], minhash.signatures([texts[k] for k in part], threshold))
    return near.near_pairs(files, lambda items: [texts[k] for k in items], threshold, folder / "spill")


def together(*labels: np.ndarray) -> int:
    """Pairs of rows that bear the same label in all of `labels`."""
    counts = np.unique(np.stack(labels), axis=1, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def compare(texts: list[str], threshold: float, folder: Path) -> dict[str, Any]:
    """Every figure of one kind of text, see this module's docstring."""
    began = time.process_time()
    edges = found(texts, threshold, folder)
    cost = time.process_time() - began
    began = time.process_time()
    true = brute_force(texts, threshold)
    brute = time.process_time() - began
    pairs = set(zip(edges.i.tolist(), edges.j.tolist(), strict=True))
    group = components(len(texts), edges.i, edges.j)
    a, b = np.array(sorted(true), np.int32).reshape(-1, 2).T
    real = components(len(texts), a, b)
    in_one = int((group[a] == group[b]).sum())
    grouped = together(group)
    return {
        "rows": len(texts),
        "true_pairs": len(true),
        "found_pairs": len(pairs),
        "candidates": edges.compared,
        "precision": _share(len(pairs & true), len(pairs)),
        "recall": _share(in_one, len(true)),
        "direct_recall": _share(len(pairs & true), len(true)),
        "group_precision": _share(together(group, real), grouped),
        "group_recall": _share(together(group, real), together(real)),
        "same_group_true": _share(in_one, grouped),
        "largest_group": int(np.bincount(group).max()),
        "cpu_s": round(cost, 2),
        "brute_force_cpu_s": round(brute, 2),
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000, help="of all kinds of text together")
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    minhash.signatures(["once, so that loading the engine is not counted"])
    kinds = make(arguments.rows // 5, arguments.seed)
    everything = [row for rows in kinds.values() for row in rows]
    random.Random(arguments.seed).shuffle(everything)
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            kind: compare(rows, arguments.threshold, Path(folder) / kind)
            for kind, rows in {"all": everything, **kinds}.items()
        }
    passed = all(kind["precision"] >= 0.99 and kind["recall"] >= 0.95 for kind in figures.values())
    out = {
        "threshold": arguments.threshold,
        "promise": {"precision": 0.99, "recall": 0.95, "kept": passed},
        "kinds": figures,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps(out, indent=2))
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
