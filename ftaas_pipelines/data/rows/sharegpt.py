"""A turn of ShareGPT, {"from", "value"}, as a message of the chat API. The names are LLaMA-Factory's."""

from typing import Any, cast

from ftaas_pipelines.data.rows.cells import RowFault, json_text, parsed, seen

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "function_call",
    "tool_call": "function_call",
    "observation": "tool",
    "function_response": "tool",
    "tool": "tool",
}


def message(turn: dict[str, Any], number: int) -> dict[str, Any]:
    """The turn as {"role", "content"}; a `function_call` becomes the assistant's `tool_calls`.

    Raises:
        RowFault: who speaks is not known, or a function call is not JSON with a name.
    """
    said_by, value = turn.get("from"), turn.get("value")
    role = _ROLES.get(said_by) if isinstance(said_by, str) else None
    if role is None:
        names = ", ".join(_ROLES)
        raise RowFault(f"'from' of message {number} is not one of {names}", seen(said_by), "rename it")
    if role == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(value, number)}
    if role == "tool" and isinstance(value, (dict, list)):
        value = json_text(value, f"message {number}")
    return {"role": role, "content": value}


def _calls(value: Any, number: int) -> list[Any]:
    found = parsed(value)
    calls = cast(list[Any], found) if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
        raise RowFault(
            f"the function call of message {number} is not JSON", seen(value), 'write {"name", "arguments"}'
        )
    return calls
