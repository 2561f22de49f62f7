"""Croissant 1.0 metadata of a dataset version (mlcommons.org/croissant), with the RAI vocabulary.

Paths in it are relative to the version's folder, or to a folder it was exported to as Parquet: there
`mlcroissant` reads the records by it and holds the files against their checksums.
"""

import json
from datetime import datetime
from typing import Any

from ftaas_pipelines.data.versions.card import Card
from ftaas_pipelines.store import short

CONFORMS_TO = ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"]
_PARQUET = "application/x-parquet"


def metadata(card: Card) -> dict[str, Any]:
    """The JSON-LD document, checked by mlcroissant while it is built."""
    import mlcroissant as mlc

    from ftaas_pipelines.data.tables import RECORDS

    files = [
        mlc.FileObject(
            id=name,
            name=name,
            content_url=name,
            content_size=f"{entry['bytes']} B",
            encoding_formats=[_PARQUET],
            sha256=entry["sha256"],
        )
        for name, entry in card.files.items()
    ]
    bucket = mlc.FileSet(
        id="buckets", name="buckets", encoding_formats=[_PARQUET], includes=["records/*.parquet"]
    )
    fields = [
        mlc.Field(
            id=f"records/{name}",
            name=name,
            data_types=[mlc.DataType.TEXT],
            source=mlc.Source(file_set="buckets", extract=mlc.Extract(column=name)),
        )
        for name in RECORDS.names
    ]
    version = card.version
    document = mlc.Metadata(
        name=card.title,
        description=f"{card.intended_use} Dataset version {version.digest}.",
        conforms_to=CONFORMS_TO,
        license=[*version.said("licence")] or ["not said"],
        creators=[mlc.Organization(name=owner) for owner in version.said("owner")],
        date_published=datetime.fromisoformat(version.made_at),
        version=f"1.0.0+{short(version.digest)}",
        cite_as=f"{card.title}, dataset version {short(version.digest)}",
        in_language=sorted(card.artifact.content.get("languages") or {}) or None,
        distribution=[*files, bucket],
        record_sets=[mlc.RecordSet(id="records", name="records", fields=fields)],
        data_collection="; ".join(_collected(source) for source in version.sources) or None,
        data_use_cases=[card.intended_use],
        data_limitations=[f"Not for: {card.not_for}"],
        data_preprocessing_protocol=_steps(card),
        personal_sensitive_information=_personal(card),
    )
    return json.loads(json.dumps(document.to_json(), default=str))


def _collected(source: dict[str, Any]) -> str:
    facts = [
        f"{name} {source[name]}"
        for name in ("owner", "vendor", "licence", "purpose", "consent")
        if source.get(name)
    ]
    made = ["written by a model"] if source.get("synthetic") else []
    return f"{source['name']}: " + (", ".join([*facts, *made]) or "nothing is said of it")


def _steps(card: Card) -> list[str]:
    content = card.artifact.content
    cleaned = [f"{step} changed {n} records" for step, n in content.get("cleaned", {}).items()]
    dropped = [f"{n} rows dropped: {reason}" for reason, n in content.get("dropped", {}).items()]
    return [*cleaned, *dropped] or ["no cleaning step is on record"]


def _personal(card: Card) -> list[str]:
    found = card.artifact.content.get("findings", {})
    return [f"Personal data and secrets are {card.privacy}."] + [f"{name}: {n}" for name, n in found.items()]
