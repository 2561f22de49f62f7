"""A Label Studio export: one task a row, its `data` and the annotations people gave it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from ftaas_pipelines.data.rows.cells import Cells, RowFault, objects, parsed, seen, text
from ftaas_pipelines.data.rows.formats import Layout
from ftaas_pipelines.data.rows.messages import Message

_PROMPTS = ("text", "prompt", "question", "instruction")
_VALUES = {"textarea": ("text", "\n"), "choices": ("choices", ", ")}  # result type: its key, how several join


def annotated(layout: Layout, cells: Cells) -> tuple[list[Message], dict[str, Any]]:
    """The prompt from the task's data, the answer from its newest annotation that was not cancelled.

    `prompt` maps to a field of `data`, `answer` to the name of a control (`from_name`); without them the
    first field and the first text area or choice that fit.

    Raises:
        RowFault: the task has no data, no such field or no annotation with an answer.
    """
    data = parsed(cells.get(layout.name("data")))
    if not isinstance(data, dict):
        raise RowFault("the task has no data", seen(data), "export as JSON, not as a table")
    fields = cast(dict[str, Any], data)
    mapped = layout.columns.get("prompt")
    field = mapped or next((name for name in _PROMPTS if name in fields), None)
    if field is None:
        raise RowFault("no field of the task's data is the prompt", do="map prompt in dataset.columns")
    return [
        {"role": "user", "content": text(fields, field, "question")},
        {"role": "assistant", "content": _answer(cells, layout)},
    ], {}


def _answer(cells: Cells, layout: Layout) -> str:
    column = layout.name("annotations")
    found = objects(cells.get(column), column, "export as JSON, not as JSON_MIN")
    given = [a for a in found if not a.get("was_cancelled") and a.get("result")]
    if not given:
        raise RowFault("the task is not annotated", do="annotate it, or delete it from the export")
    newest = max(given, key=_age)
    control = layout.columns.get("answer")
    for kind, (key, between) in _VALUES.items():
        for result in objects(newest["result"], "result", "export as JSON"):
            if result.get("type") == kind and control in (None, result.get("from_name")):
                said = _texts(result.get("value"), key)
                if said:
                    return between.join(said)
    what = (
        f"the annotation has no answer in '{control}'" if control else "the annotation has no text or choice"
    )
    raise RowFault(what, do="map answer to the name of its control in dataset.columns")


def _age(annotation: Mapping[str, Any]) -> tuple[float, int]:
    """When it was last changed; of equals the later number."""
    when = annotation.get("updated_at") or annotation.get("created_at")
    number = annotation.get("id")
    try:
        at = datetime.fromisoformat(when if isinstance(when, str) else "")
        changed = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except ValueError:
        changed = 0.0
    return changed, number if isinstance(number, int) else 0


def _texts(value: Any, key: str) -> list[str]:
    found = cast(dict[str, Any], value).get(key) if isinstance(value, dict) else None
    items = cast(list[Any], found) if isinstance(found, list) else [found]
    return [item for item in items if isinstance(item, str) and item.strip()]
