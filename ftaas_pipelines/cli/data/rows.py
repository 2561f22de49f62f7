"""`ftaas data rows`: records as they are, or token by token as a recipe's training reads them."""

from typing import Annotated, Any

import typer
from rich.console import Console

from ftaas_pipelines.cli import artifacts
from ftaas_pipelines.cli.data.opening import KINDS, Digest
from ftaas_pipelines.cli.output import Json, emit, table
from ftaas_pipelines.store import short


def rows(
    digest: Digest,
    limit: Annotated[int, typer.Option(min=1, help="At most so many rows.")] = 20,
    split: Annotated[
        str, typer.Option(help="train, validation, test or challenge_<name>; splits show train by default.")
    ] = "",
    kind: Annotated[str, typer.Option(help="Only this kind, such as text_pair or preference.")] = "",
    source: Annotated[str, typer.Option(help="Only this source.")] = "",
    record: Annotated[str, typer.Option(help="Only records whose id begins so.")] = "",
    rendered: Annotated[
        str, typer.Option(metavar="RECIPE", help="Token by token, as this recipe is taught them.")
    ] = "",
    project: Annotated[str, typer.Option(help="Whose recipe; by default the project it was made for.")] = "",
    as_json: Json = False,
) -> None:
    """Print rows, by record id."""
    from ftaas_pipelines.data.versions import view

    artifact = artifacts.get(digest, KINDS, "data")
    found = view.rows(
        artifact, split or None, limit, kind=kind or None, source=source or None, record=record or None
    )
    document: dict[str, Any] = {"digest": artifact.digest, "kind": artifact.kind, "split": split or None}
    if rendered:
        from ftaas_pipelines.cli.data import rendering

        reading = rendering.reading(artifact, rendered, project)
        examples = [reading.render(row) for row in found]
        document |= reading.facts | {"rows": [example.as_dict() for example in examples]}
        emit(as_json, document, lambda screen: rendering.show(screen, reading, examples))
        return
    if artifact.kind == "dataset":
        places = view.origins(artifact, [row["record_id"] for row in found])
        for row in found:
            row["came_from"] = places.get(row["record_id"], [])
    lines = [(short(row["record_id"]), _place(row), row["prompt"], row["answer"]) for row in found]

    def render(screen: Console) -> None:
        screen.print(table(("record", "came from", "prompt", "answer"), lines) if lines else "no such rows")

    emit(as_json, {**document, "rows": found}, render)


def _place(row: dict[str, Any]) -> str:
    """The source of a record and its row there; and how many rows say the same."""
    places: list[dict[str, Any]] = row.get("came_from", [])
    if not places:
        return row["source"]
    first = next((p for p in places if p["source"] == row["source"]), places[0])
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return f"{first['source']} row {first['row']}{more}"
