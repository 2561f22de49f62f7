"""`source_<name>`: the raw data, observed and never made. One sensor looks at all of them."""

import dagster as dg

from assets.builder_types import Definition
from assets.line import fingerprint
from assets.naming import common
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.projects.project import Source


def define(loaded: Loaded) -> list[Definition]:
    return [_source(loaded, source) for source in loaded.project.dataset.sources]


def _source(loaded: Loaded, source: Source) -> Definition:
    path = loaded.path(source.path)
    description = f"Raw rows of `{source.path}`" + (
        f", used as the {source.split} split" if source.split else ""
    )

    shared = common(loaded, f"source_{source.name}", description, path.suffix.lstrip(".") or "file")
    shared["tags"] = {**shared["tags"]}
    kinds = shared.pop("kinds")
    shared.pop("owners")

    @dg.observable_source_asset(
        **{k: v for k, v in shared.items() if k != "tags"},
        tags={**shared["tags"], **{f"dagster/kind/{k}": "" for k in kinds}},
        metadata={
            "path": str(path),
            "licence": source.licence or "not stated",
            "purpose": source.purpose or "-",
        },
    )
    def observe() -> dg.DataVersion:
        return dg.DataVersion(fingerprint(path))

    return observe
