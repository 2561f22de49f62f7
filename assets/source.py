"""`source_<name>`: the raw data, observed and never made. One sensor looks at all of them."""

from typing import Any

import dagster as dg

from assets.builder_types import Definition
from assets.data_line import landing_root
from assets.naming import common
from ftaas_pipelines import settings
from ftaas_pipelines.data.sources import landing
from ftaas_pipelines.data.sources.landing import Landing
from ftaas_pipelines.projects import data_files
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.projects.dataset import Source


def define(loaded: Loaded) -> list[Definition]:
    return [_source(loaded, source) for source in loaded.project.dataset.sources]


def look(loaded: Loaded, source: Source, younger_than_s: float = 0.0, wait_s: float = 3600) -> Landing:
    """Look at a source's place and land what changed; see `landing.land`."""
    root = landing_root(settings.load(), loaded)
    return landing.land(source, loaded.folder, root, younger_than_s, wait_s)


def seen(found: Landing) -> dict[str, Any]:
    """What an observation says beside the digest."""
    facts: dict[str, Any] = {"place": found.place, "files": len(found.files), "bytes": found.bytes}
    return facts if found.rows is None else {**facts, "rows": found.rows}


def _source(loaded: Loaded, source: Source) -> Definition:
    description = f"Raw rows of `{source.place}`" + (
        f", used as the {source.split} split" if source.split else ""
    )
    shared = common(loaded, f"source_{source.name}", description, _kind(source))
    kinds = shared.pop("kinds")
    shared.pop("owners")
    tags = {**shared.pop("tags"), **{f"dagster/kind/{k}": "" for k in kinds}}

    @dg.observable_source_asset(**shared, tags=tags, metadata=_declared(source))
    def observe() -> dg.DataVersion:
        return dg.DataVersion(look(loaded, source).sha256)

    return observe


def _kind(source: Source) -> str:
    """One word: sql, http, huggingface, the URL's scheme, or the files' suffix."""
    for name in ("sql", "http", "huggingface"):
        if getattr(source, name):
            return name
    scheme, mark, _ = (source.path or "").partition("://")
    return scheme if mark else data_files.suffix(source.path or "").lstrip(".").partition(".")[0] or "file"


def _declared(source: Source) -> dict[str, Any]:
    """What the project says of it, and what goes with every row."""
    return {
        "place": source.place,
        "licence": source.licence or "not stated",
        "owner": source.owner or "-",
        "vendor": source.vendor or "-",
        "purpose": source.purpose or "-",
        "consent": source.consent or "-",
        "cost_usd": source.cost_usd,
    }
