"""Which rows people are asked about: what is new, risky rows first, the rest by lot.

All new rows up to a limit. Beyond it, up to a third of the limit are the riskiest; the others are drawn
with equal chances, spread evenly over sources and labels (a systematic sample of rows sorted by source,
label and lot). Old rows keep their verdicts; a tenth of the limit on top is drawn from them afresh. Lots
are hashes of `record_id` and the seed, which is the rows' own digest: the same rows, the same sample.

What a sample supports: an upper bound, at 95% confidence, on the share of bad rows in what its random part
was drawn from; exact for draws without replacement (hypergeometric, the finite form of Clopper and Pearson
1934). Even spreading only makes it wider than need be (Hoeffding 1956). Risky rows are not in it.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ftaas_pipelines.data import tables
from ftaas_pipelines.data.inputs import DatasetInputs
from ftaas_pipelines.data.splits.rules import share
from ftaas_pipelines.data.versions import view
from ftaas_pipelines.review import forms
from ftaas_pipelines.review.rounds import Kind, Task
from ftaas_pipelines.review.rows.new_rows import CAME, OLD, NewRows
from ftaas_pipelines.review.rows.risk import Risks, risks
from ftaas_pipelines.review.rows.row_standing import rows_digest
from ftaas_pipelines.store import Artifact

pc: Any = pyarrow.compute  # its functions are made at run time
CONFIDENCE = 0.95
_LABELS, _LABEL_CHARACTERS = 200, 80  # so short answers are labels, where there are fewer than so many
_LABEL_TRUE = r'"label":\s*true'


@dataclass(frozen=True)
class Plan:
    """The tasks of a row review, and what is said of their choice in the record."""

    kind: Kind
    tasks: list[Task]
    about: dict[str, Any]


@dataclass
class _Rows:
    """Columns of numbers, one row a record, in order of record_id.

    Attributes:
        lot: uint64, each row's own at this seed.
        stratum: int64, by source and label.
    """

    lot: Any
    stratum: Any


@dataclass
class _Chosen:
    """Places of the rows that are asked about, by how they came to be: in order of asking."""

    all: list[int] = field(default_factory=list[int])
    risky: list[int] = field(default_factory=list[int])
    random: list[int] = field(default_factory=list[int])
    fresh: list[int] = field(default_factory=list[int])
    drawn_from: int = 0

    def items(self) -> list[tuple[str, int]]:
        named = (("all", self.all), ("risky", self.risky), ("random", self.random), ("fresh", self.fresh))
        return [(how, place) for how, places in named for place in places]


def plan(
    dataset: Artifact,
    inputs: DatasetInputs,
    new: NewRows,
    limit: int,
    splits: Artifact | None = None,
) -> Plan:
    """Choose the rows and write their tasks. Memory: some 30 bytes a record, and the tasks.

    Args:
        inputs: what the dataset is made from, with or without verdicts.
        new: how it differs from the last one that was reviewed.
        limit: at most so many new rows, at least 1.
        splits: of this or an earlier version: tells near-duplicates of the test split.
    """
    rows = rows_digest(inputs)
    seed = rows[:16]
    looked = _look(dataset, int(seed, 16))
    found = risks(dataset, splits)
    chosen = _choose(new.marks, looked, found.score, limit, share(int(seed, 16), "start"))
    random = chosen.random or chosen.all
    drawn_from = chosen.drawn_from if chosen.random else len(chosen.all)
    about: dict[str, Any] = {
        "rows": rows,
        "records": len(new.marks),
        "new": new.came,
        "changed": new.changed,
        "gone": new.gone,
        "gone_because": new.gone_because,
        "asked": len(chosen.items()),
        "risky": len(chosen.risky),
        "random": len(random),
        "drawn_from": drawn_from,
        "fresh": len(chosen.fresh),
        "limit": limit,
        "seed": seed,
        "strata": int(len(np.unique(looked.stratum[new.marks != OLD]))),
        "bound_if_none_bad": bound(drawn_from, len(random), 0),
    }
    kinds = dataset.content.get("kinds", {})
    kind: Kind = "preference" if set(kinds) == {"preference"} else "rows"
    return Plan(kind, _tasks(dataset, inputs, kind, chosen, new, found, about), about)


def bound(population: int, drawn: int, bad: int) -> float | None:
    """The share of bad rows that is not exceeded, at 95% confidence, when so many drawn ones are bad.

    The largest share under which seeing so few bad rows still has a chance of 5%. None: none was drawn.
    """
    if drawn == 0:
        return None
    low, high = bad, population - (drawn - bad)
    while low < high:  # the chance of seeing at most `bad` falls as there are more
        middle = (low + high + 1) // 2
        if _at_most(population, middle, drawn, bad) > 1 - CONFIDENCE:
            low = middle
        else:
            high = middle - 1
    return round(low / population, 6)


def _at_most(population: int, worse: int, drawn: int, bad: int) -> float:
    """The chance that of `drawn` rows at most `bad` are among the `worse` of the population."""

    def choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    total = choose(population, drawn)
    seen = range(max(0, drawn - (population - worse)), min(bad, worse) + 1)
    return sum(math.exp(choose(worse, i) + choose(population - worse, drawn - i) - total) for i in seen)


def bound_in_words(about: dict[str, Any], bad: int = 0) -> str:
    """What the random part of a sample supports, and what it speaks of."""
    population, drawn = about["drawn_from"], about["random"]
    most = bound(population, drawn, bad)
    if most is None:
        return "no new row was drawn: nothing is said of rows that nobody looked at"
    if population == drawn:
        return f"every one of the {population} new or changed rows was looked at: {bad} of them bad"
    seen = "none" if bad == 0 else str(bad)
    verb = "is" if bad < 2 else "are"
    return (
        f"{seen} of {drawn} rows drawn by lot {verb} bad: at most {most:.2%} of the {population} new or"
        " changed rows that they were drawn from are bad (95% confidence; rows picked as risky are not among"
        " them)"
    )


# -- choosing ------------------------------------------------------------------------------------


def _look(dataset: Artifact, seed: int) -> _Rows:
    """Lots and strata of every row, read in pieces."""
    sources = pa.array(sorted(dataset.content["by_source"]), pa.string())
    lots, places, labels, truths = list[Any](), list[Any](), list[Any](), list[Any]()
    known: dict[str, int] | None = {}
    for piece in tables.pieces(dataset.file("records"), ["record_id", "source", "answer", "extra"]):
        lots.append(_lots(piece["record_id"], seed))
        places.append(np.asarray(pc.index_in(piece["source"], value_set=sources)).astype(np.int64))
        truth = pc.fill_null(pc.match_substring_regex(piece["extra"], _LABEL_TRUE), False)
        truths.append(np.asarray(truth).astype(np.int64))
        known = _labels(piece["answer"], known)
        if known is not None:
            codes = pc.index_in(piece["answer"], value_set=pa.array(list(known), pa.string()))
            labels.append(np.asarray(pc.fill_null(codes, -1)).astype(np.int64) + 1)
    source = np.concatenate(places)
    label = np.concatenate(labels) if known is not None else np.zeros(len(source), np.int64)
    return _Rows(np.concatenate(lots), (source * _LABELS + label) * 2 + np.concatenate(truths))


def _labels(answers: Any, known: dict[str, int] | None) -> dict[str, int] | None:
    """The distinct short answers so far, in order of coming; None once they are too many to be labels."""
    if known is None:
        return None
    short = answers.filter(pc.less_equal(pc.utf8_length(answers), _LABEL_CHARACTERS))
    for answer in sorted(pc.unique(short).to_pylist()):
        known.setdefault(answer, len(known) + 1)  # 0: no label
    return known if len(known) < _LABELS else None


def _lots(record_ids: Any, seed: int) -> Any:
    """A number of each row's own, in no order that anybody chose (splitmix64 of its id and the seed)."""
    heads = "".join(pc.utf8_slice_codeunits(record_ids, 0, 16).to_pylist())
    z = np.frombuffer(bytes.fromhex(heads), ">u8").astype(np.uint64) ^ np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _choose(marks: Any, rows: _Rows, score: Any, limit: int, start: float) -> _Chosen:
    """Args: score: [records], 0 where a row is not risky; start: in [0, 1)."""
    news = np.flatnonzero(marks != OLD)
    chosen = _Chosen()
    by_risk = news[np.lexsort((rows.lot[news], -score[news].astype(np.int64)))]
    if len(news) <= limit:
        chosen.all = by_risk.tolist()
    else:
        risky = by_risk[: limit // 3]
        chosen.risky = risky[score[risky] > 0].tolist()
        rest = np.setdiff1d(news, chosen.risky, assume_unique=True)
        rest = rest[np.lexsort((rows.lot[rest], rows.stratum[rest]))]
        wanted = limit - len(chosen.risky)
        places = ((start + np.arange(wanted)) * (len(rest) / wanted)).astype(np.int64)
        chosen.random, chosen.drawn_from = rest[np.minimum(places, len(rest) - 1)].tolist(), len(rest)
    old = np.flatnonzero(marks == OLD)
    chosen.fresh = old[np.argsort(rows.lot[old], kind="stable")][: max(1, limit // 10)].tolist()
    return chosen


# -- tasks ---------------------------------------------------------------------------------------


def _tasks(
    dataset: Artifact,
    inputs: DatasetInputs,
    kind: Kind,
    chosen: _Chosen,
    new: NewRows,
    found: Risks,
    about: dict[str, Any],
) -> list[Task]:
    items = chosen.items()
    ids = _ids_at(dataset, [place for _, place in items])
    rows, seen = view.by_id(dataset, ids.values()), _findings(dataset, list(ids.values()))
    absent = sorted(n for n, count in dataset.content["findings"].items() if count == "not checked")
    licences = {s.name: s.licence for s in inputs.sources}
    sample, tasks = in_words(about), list[Task]()
    for how, place in items:
        row = rows[ids[place]]
        news = "drawn afresh from old rows" if how == "fresh" else (
            "new" if new.marks[place] == CAME else "changed since the last review"
        )  # fmt: skip
        why = [news, *found.why(place, ids[place]), *(["drawn by lot"] if how == "random" else [])]
        meta = {
            "record": row["record_id"][:12],
            "source": row["source"],
            "licence": licences.get(row["source"]) or "not stated",
            "findings": ", ".join(f"{name} {n}" for name, n in seen.get(row["record_id"], {}).items())
            or "none",
            "not checked": ", ".join(absent) or "-",
            "label": _label(row),
            "language": row["language"] or "not checked",
            "written by": "a model" if row["synthetic"] else "not said to be by a model",
            "why you see it": "; ".join(why),
        }
        if kind == "preference":
            data = forms.preference_data(row, meta, sample, about["seed"])
        else:
            data = forms.row_data(row, meta, sample)
        tasks.append(Task(row["record_id"], {**data, "drawn": how}))
    return tasks


def _ids_at(dataset: Artifact, places: list[int]) -> dict[int, str]:
    """The record_ids at these places of the dataset version."""
    wanted, found, at = np.array(sorted(places), np.int64), dict[int, str](), 0
    for piece in tables.pieces(dataset.file("records"), ["record_id"]):
        here = wanted[(wanted >= at) & (wanted < at + len(piece))]
        ids = piece["record_id"].take(pa.array(here - at)).to_pylist()
        found.update(zip(here.tolist(), ids, strict=True))
        at += len(piece)
    return found


def _findings(dataset: Artifact, ids: list[str]) -> dict[str, dict[str, int]]:
    """record_id to detector to how many findings."""
    found: dict[str, dict[str, int]] = {}
    for piece in tables.pieces(dataset.file("findings"), ["record_id", "detector"]):
        mine = piece.filter(pc.is_in(piece["record_id"], value_set=pa.array(ids, pa.string())))
        for row in mine.group_by(["record_id", "detector"]).aggregate([([], "count_all")]).to_pylist():
            found.setdefault(row["record_id"], {})[row["detector"]] = row["count_all"]
    return {record_id: dict(sorted(by.items())) for record_id, by in found.items()}


def _label(row: dict[str, Any]) -> str:
    extra = row.get("extra") or {}
    return str(extra["label"]) if "label" in extra else "-"


def in_words(about: dict[str, Any]) -> str:
    news = about["new"] + about["changed"]
    if about["asked"] == news + about["fresh"]:
        text = f"All {news} new or changed rows of {about['records']} are asked about."
    else:
        text = (
            f"A sample of {about['asked'] - about['fresh']} of the {news} new or changed rows"
            f" ({about['records']} in all): {about['risky']} risky ones first, {about['random']} by lot."
        )
        text += f" If n{bound_in_words(about)[1:]}."
    fresh = f" {about['fresh']} old rows are drawn afresh." if about["fresh"] else ""
    return f"{text}{fresh} Seed {about['seed']}."
