"""The catalog: what a dataset version is, cost and may be used for, and who signed it.

Facts come from the artifact (what it holds), its attestation (what it was made from) and the ledger
(who decided what on its splits). Light: reading them opens JSON files and Parquet footers alone.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ftaas_pipelines.data.versions import view
from ftaas_pipelines.governance.ledger import Entry, Ledger
from ftaas_pipelines.store import Artifact, Store

_SOURCE_FACTS = ("owner", "vendor", "licence", "purpose", "consent")


@dataclass(frozen=True)
class SignOff:
    """What one person last decided on a splits artifact, in one role."""

    role: str
    by: str
    decision: str
    at: str
    comment: str = ""


@dataclass(frozen=True)
class SplitsFacts:
    """One way a version was shared out: records by split, and who signed it."""

    digest: str
    made_at: str
    counts: dict[str, int]
    sign_offs: list[SignOff]


@dataclass(frozen=True)
class Version:
    """A dataset version as the catalog lists it.

    Attributes:
        project: the project it was first made for.
        current: it is what the project's `dataset` last made.
        bytes: of the files that are part of its identity.
        sources: what `project.yaml` says of each source, its sha256, and its rows: in, kept, by reason.
        cost_usd: of all sources.
    """

    digest: str
    project: str
    made_at: str
    made_by: str
    current: bool
    records: int
    bytes: int
    sources: list[dict[str, Any]]
    cost_usd: float
    splits: list[SplitsFacts]

    def said(self, fact: str) -> list[str]:
        """What the sources say of one thing (owner, vendor, licence, purpose, consent), each once."""
        return sorted({str(s[fact]) for s in self.sources if s.get(fact)})

    def as_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        said = {fact: self.said(fact) for fact in _SOURCE_FACTS}
        return {**asdict(self), **said}


def version(artifact: Artifact, store: Store, ledger: Ledger) -> Version:
    """What the catalog knows of one dataset version."""
    return versions([artifact], store, ledger)[0]


def versions(artifacts: Sequence[Artifact], store: Store, ledger: Ledger) -> list[Version]:
    """What the catalog knows of these dataset versions, in their order."""
    shared_out: dict[str, list[Artifact]] = defaultdict(list)
    for splits in store.all("splits"):
        shared_out[splits.content.get("dataset", "")].append(splits)
    signed = sign_offs(ledger.entries("decision", authentic=True))
    found: list[Version] = []
    for artifact in artifacts:
        attestation, content = artifact.attestation, artifact.content
        spec = attestation.get("spec", {})
        project, rows = spec.get("project", ""), content.get("rows", {})
        sources = [{**s, "rows": rows.get(s["name"], {})} for s in spec.get("inputs", {}).get("sources", [])]
        found.append(
            Version(
                digest=artifact.digest,
                project=project,
                made_at=attestation["made_at"],
                made_by=attestation.get("actor", ""),
                current=(store.head(project, "dataset") or {}).get("output") == artifact.digest,
                records=content.get("records", 0),
                bytes=sum(entry["bytes"] for entry in artifact.manifest["files"].values()),
                sources=sources,
                cost_usd=round(sum(float(s.get("cost_usd") or 0) for s in sources), 2),
                splits=[splits_facts(s, signed) for s in shared_out[artifact.digest]],
            )
        )
    return found


def splits_facts(splits: Artifact, signed: dict[str, list[SignOff]]) -> SplitsFacts:
    """What the catalog knows of one splits artifact."""
    return SplitsFacts(
        splits.digest,
        splits.attestation["made_at"],
        view.counts(splits) if "counts" in splits.content else {},
        signed.get(splits.digest, []),
    )


def sign_offs(decisions: Iterable[Entry]) -> dict[str, list[SignOff]]:
    """Each person's latest decision in each role, by the digest it is about."""
    latest: dict[tuple[str, str, str], SignOff] = {}
    for e in decisions:
        body = e.body
        latest[(e.subject, body.get("role", ""), e.actor.lower())] = SignOff(
            body.get("role", ""), e.actor, body.get("decision", ""), e.at, body.get("comment", "")
        )
    found: dict[str, list[SignOff]] = defaultdict(list)
    for (subject, _, _), sign_off in sorted(latest.items()):
        found[subject].append(sign_off)
    return dict(found)


def synthetic(artifact: Artifact) -> int:
    """How many records of a dataset version a model wrote; read off the files' footers where they say."""
    import pyarrow.parquet as pq

    marked = 0
    for path in view.files(artifact):
        file: Any = pq.ParquetFile(path)
        column = file.schema_arrow.get_field_index("synthetic")
        if column < 0:  # of a version from before rows were marked
            continue
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        statistics = [group.column(column).statistics for group in groups]
        if all(s is not None and s.has_null_count for s in statistics):
            marked += sum(g.num_rows - s.null_count for g, s in zip(groups, statistics, strict=True))
        else:
            read = file.read(columns=["synthetic"])
            marked += len(read) - read["synthetic"].null_count
    return marked
