"""What new rows begin with: checked, read, treated as the project's privacy policy says."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ftaas_pipelines.data.sources.landing import Landing
from ftaas_pipelines.data.synthesis import material
from ftaas_pipelines.data.synthesis.generate import Generation
from ftaas_pipelines.data.synthesis.material import Pair
from ftaas_pipelines.data.synthesis.methods import Asking, Evolve, FromDocuments, Method, SelfInstruct
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.projects.dataset import Dataset, Source
from ftaas_pipelines.store import Artifact

_HELD_OUT = ("validation", "test", "challenge")
_SEED_KINDS = ("text_pair", "preference", "labelled", "prompt")


@dataclass(frozen=True)
class Beginning:
    """What the person asked for.

    Attributes:
        source: with the seeds, or with texts as documents; empty where `folder` is.
        folder: of documents.
        method: how new rows come from seeds.
    """

    origin: Literal["seeds", "documents"]
    source: str
    folder: Path | None
    method: Literal["self_instruct", "evolve"]

    def check(self, dataset: Dataset) -> None:
        """Raise where the wishes do not go together.

        Raises:
            InputInvalid: they do not, or the source is unknown or held out.
        """
        if self.origin == "documents" and self.method == "evolve":
            do = "generate from documents first, then evolve the source that becomes of it"
            raise InputInvalid("documents are not evolved", "--method", self.method, do)
        if self.folder is not None:
            if self.origin == "seeds" or self.source:
                do = "use --from documents, with --documents or --source"
                raise InputInvalid("is for --from documents, without --source", "--documents", do=do)
            return
        split = find_source(dataset, self.source).split
        if split in _HELD_OUT:
            got, do = f"split: {split}", "name a source that may be trained on"
            raise InputInvalid("held-out rows are no seeds: what comes of them leaks", self.source, got, do)


def find_source(dataset: Dataset, name: str) -> Source:
    """A source by its name.

    Raises:
        InputInvalid: there is none.
    """
    sources = {source.name: source for source in dataset.sources}
    if name not in sources:
        known = f"one of: {', '.join(sources)}"
        raise InputInvalid("there is no such source", "--source", f"'{name}'", known)
    return sources[name]


def generation(
    beginning: Beginning,
    loaded: Loaded,
    landings: Mapping[str, Landing],
    splits: Artifact | None,
    asking: Asking,
    count: int,
) -> Generation:
    """Read every row of the project, to know it, and what new rows begin with.

    Args:
        splits: the project's newest splits: only rows of train are seeds; None where there are none yet.

    Raises:
        InputInvalid: a file cannot be read, or nothing is there to begin with.
    """
    from ftaas_pipelines.data.synthesis.known import Known

    dataset = loaded.project.dataset
    known = Known(dataset.duplicates.threshold)
    rows = material.know(known, material.real_rows(dataset, landings), dataset.duplicates.on)
    if beginning.folder is not None:
        begun = material.documents(beginning.folder)
        for _ in rows:  # only to be known
            pass
    else:
        kinds = _SEED_KINDS if beginning.origin == "seeds" else ("text",)
        begun = material.few(rows, beginning.source, kinds, _train(splits))
    reasons = material.treat(begun, loaded)
    shown = [row for row, reason in zip(begun, reasons, strict=True) if reason is None]
    if not shown:
        raise InputInvalid(
            "the privacy policy leaves nothing to begin with", "dataset.privacy", f"{len(begun)} rows dropped"
        )
    method: Method
    if beginning.origin == "documents":
        method = FromDocuments(asking, material.passages(row.answer for row in shown))
    else:
        kind = SelfInstruct if beginning.method == "self_instruct" else Evolve
        method = kind(asking, [Pair(row.prompt, row.answer) for row in shown])
    return Generation(method, known, dataset.duplicates.on, count)


def _train(splits: Artifact | None) -> set[str] | None:
    """The `record_id`s of train."""
    if splits is None:
        return None
    import pyarrow.parquet as pq

    from ftaas_pipelines.data.versions import view

    ids: set[str] = set()
    for path in view.files(splits, "train"):
        ids.update(pq.read_table(path, columns=["record_id"])["record_id"].to_pylist())
    return ids
