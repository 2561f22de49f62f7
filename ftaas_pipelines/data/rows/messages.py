"""A conversation as files write it (OpenAI's chat API, ChatML, ShareGPT) to the messages of a record.

A message of ours: role (system, user, assistant, tool), content (always text) and, where it has them,
name, tool_calls ([{"id", "type": "function", "function": {"name", "arguments": JSON text}}]),
images ([{"ref", "sha256" or None}]) and tool_call_id.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, cast

import orjson

from ftaas_pipelines.data.rows import images as pictures
from ftaas_pipelines.data.rows import sharegpt
from ftaas_pipelines.data.rows.cells import RowFault, is_blank, json_text, objects, parsed, seen

ROLES = ("system", "user", "assistant", "tool")
Message = dict[str, Any]
_ROLE = {**{role: role for role in ROLES}, "developer": "system", "function": "tool"}
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image_url", "input_image", "image")


def turns(value: Any) -> list[Any] | None:
    """The turns that a cell holds: a list, its JSON text, or one turn alone.

    None where it is something else, such as an answer that happens to be JSON.
    """
    found = [cast(Any, value)] if isinstance(value, dict) else parsed(value)
    if not isinstance(found, list) or not found:
        return None
    items = cast(list[Any], found)
    return items if all(isinstance(item, dict) and _is_turn(cast(Any, item)) for item in items) else None


def _is_turn(item: dict[str, Any]) -> bool:
    return ("role" in item and ("content" in item or "tool_calls" in item)) or {
        "from",
        "value",
    } <= item.keys()


def conversation(value: Any, column: str) -> list[Message]:
    """The messages of a list of turns. How the list ends is not looked at.

    A system message that says nothing is none. A call without an id is numbered, and an answer of a tool
    that names no call answers the oldest open one.

    Raises:
        RowFault: it is no such list, or one of its messages is wrong.
    """
    found = parsed(value)
    if not isinstance(found, list) or not found:
        raise RowFault(f"'{column}' is not a list of messages", seen(value), 'write [{"role", "content"}, …]')
    messages = [_message(item, n) for n, item in enumerate(cast(list[Any], found), 1)]
    if messages[0]["role"] == "system" and is_blank(messages[0]["content"]):
        del messages[0]
    _link(messages)
    if any(m["role"] == "system" for m in messages[1:]):
        raise RowFault("a system message does not come first", _roles(messages), "put it first")
    return messages


def with_system(messages: list[Message], system: Any, column: str) -> list[Message]:
    """The messages after the system message of a column of its own; one in the conversation wins.

    Raises:
        RowFault: the column holds no text.
    """
    if is_blank(system) or (messages and messages[0]["role"] == "system"):
        return messages
    if not isinstance(system, str):
        raise RowFault(f"'{column}' is not text", seen(system), "write it in quotes")
    return [{"role": "system", "content": system}, *messages]


def check_answered(messages: list[Message]) -> None:
    """That somebody asks and the assistant has the last word; a text alone needs nobody who asks.

    Raises:
        RowFault: not so.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise RowFault(
            "the row has no answer: the last message is not the assistant's",
            f"role '{messages[-1]['role']}'" if messages else "no message",
            "add the answer or delete the row",
        )
    if len(messages) > 1 and all(m["role"] != "user" for m in messages):
        raise RowFault("no message is the user's", _roles(messages))


def tools(value: Any, column: str) -> list[dict[str, Any]]:
    """The tools that may be called, each as {"type": "function", "function": {"name", …}}.

    Raises:
        RowFault: it is not a list of such objects or its JSON text.
    """
    found = objects(value, column, 'write [{"type": "function", "function": {"name", …}}, …]')
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in found]


def calls_text(message: Message) -> str:
    """The calls of a message as canonical JSON text: [{"name", "arguments"}], without their ids."""
    calls = [call["function"] for call in message["tool_calls"]]
    said = [{**call, "arguments": orjson.loads(call["arguments"])} for call in calls]
    return json_text(said, "tool_calls")


def _message(item: Any, number: int) -> Message:
    if not isinstance(item, dict):
        raise RowFault(f"message {number} is not an object", seen(item), 'write {"role", "content"}')
    turn = cast(dict[str, Any], item)
    if "from" in turn and "role" not in turn:
        turn = sharegpt.message(turn, number)
    given, content = turn.get("role"), turn.get("content")
    role = _ROLE.get(given) if isinstance(given, str) else None
    if role is None:
        known, got = ", ".join(ROLES), f"'{given}'" if isinstance(given, str) and len(given) < 20 else "it"
        raise RowFault(f"role {got} is not one of {known}", f"message {number}", "rename it")
    if len(turn) == 2 and isinstance(content, str) and content and not content.isspace():
        return {"role": role, "content": content}  # nearly every message
    return _rich(turn, role, number)


def _rich(turn: dict[str, Any], role: str, number: int) -> Message:
    """A message that is more than a role and a text, or less."""
    content, images = _content(turn.get("content"), turn.get("images"), number)
    message: Message = {"role": role, "content": content}
    if isinstance(name := turn.get("name"), str) and name:
        message["name"] = name
    if calls := _calls(turn, number):
        if role != "assistant":
            raise RowFault(f"message {number} calls a tool", f"role '{role}'", "only the assistant may")
        message["tool_calls"] = calls
    if images:
        message["images"] = images
    if isinstance(answers := turn.get("tool_call_id"), str) and answers:
        message["tool_call_id"] = answers
    if is_blank(content) and not calls and not images and role not in ("system", "tool"):
        meaning = "answer" if role == "assistant" else "text"
        what = f"the row has no {meaning}: message {number} is empty"
        raise RowFault(what, do="write it or delete the row")
    return message


def _content(content: Any, images: Any, number: int) -> tuple[str, list[dict[str, Any]]]:
    """The text and the images of a message, from plain text or from parts."""
    if not isinstance(images, (list, type(None))):
        raise RowFault(f"images of message {number} is not a list", seen(images), "write [path or URL, …]")
    found = [_image(image, number) for image in cast(list[Any], images or [])]
    if content is None or isinstance(content, str):
        return content or "", found
    if not isinstance(content, list):
        what = f"the content of message {number} is not text"
        raise RowFault(what, seen(content), "write it in quotes")
    texts: list[str] = []
    for part in cast(list[Any], content):
        piece = cast(dict[str, Any], part if isinstance(part, dict) else {"type": "text", "text": part})
        kind = piece.get("type")
        if kind in _TEXT_PARTS and isinstance(piece.get("text"), str):
            texts.append(piece["text"])
        elif kind in _IMAGE_PARTS:
            names = ("image_url", "image", "path", "url")
            found.append(_image(next((piece[n] for n in names if piece.get(n)), None), number))
        else:
            what = f"a part of message {number} is neither text nor an image"
            raise RowFault(what, seen(part), "leave it out")
    return "\n".join(texts), found


def _image(image: Any, number: int) -> dict[str, Any]:
    """An image by its path or URL. A data URI is hashed here; what lies elsewhere is hashed when fetched."""
    sha256 = None
    if isinstance(image, dict):
        item = cast(dict[str, Any], image)
        sha256 = item.get("sha256")
        image = next((item[n] for n in ("ref", "url", "path") if item.get(n)), None)
    if not isinstance(image, str) or not image or not isinstance(sha256, (str, type(None))):
        do = "name a file or URL; write bytes to a file beside the data"
        raise RowFault(f"an image of message {number} has no path or URL", seen(image), do)
    if pictures.is_uri(image):
        sha256 = hashlib.sha256(pictures.of_uri(image, number)).hexdigest()
    return {"ref": image, "sha256": sha256}


def _calls(turn: dict[str, Any], number: int) -> list[dict[str, Any]]:
    given = parsed(turn.get("tool_calls"))
    if not given and (older := turn.get("function_call")):  # the API's form before November 2023
        given = [parsed(older)]
    if not given:
        return []
    if not isinstance(given, list):
        raise RowFault(f"tool_calls of message {number} is not a list", seen(given), "write [{…}, …]")
    return [_call(call, number) for call in cast(list[Any], given)]


def _call(call: Any, number: int) -> dict[str, Any]:
    item = cast(dict[str, Any], call if isinstance(call, dict) else {})
    inner = item.get("function")
    function = cast(dict[str, Any], inner) if isinstance(inner, dict) else item  # or {"name", "arguments"}
    name, given = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        raise RowFault(
            f"a tool call of message {number} has no name", seen(call), 'write {"name", "arguments"}'
        )
    if isinstance(given, str) and given.strip():
        try:
            orjson.loads(given)
            arguments = given
        except orjson.JSONDecodeError:
            what = f"the arguments of a tool call in message {number} are not JSON"
            raise RowFault(what, seen(given), "write an object") from None
    else:
        blank = is_blank(given)
        arguments = json_text({} if blank else given, f"the arguments of a tool call in message {number}")
    known = item.get("id")
    return {
        "id": known if isinstance(known, str) else "",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _link(messages: Iterable[Message]) -> None:
    """Give each call an id and each tool message the call it answers."""
    taken = {call["id"] for m in messages for call in m.get("tool_calls", ())}
    numbers, waiting = iter(range(1, 1_000_000)), list[str]()
    for message in messages:
        for call in message.get("tool_calls", ()):
            call["id"] = call["id"] or next(i for n in numbers if (i := f"call_{n}") not in taken)
            waiting.append(call["id"])
        if message["role"] == "tool" and waiting:
            answered = message.setdefault("tool_call_id", waiting[0])
            if answered in waiting:
                waiting.remove(answered)


def _roles(messages: list[Message]) -> str:
    return f"roles {', '.join(m['role'] for m in messages)}"


def of_row(row: Mapping[str, Any]) -> list[Message]:
    """The messages of a row of the record table: they are null where prompt and answer say all of it."""
    if row["messages"] is not None:
        return orjson.loads(row["messages"])
    answer: Message = {"role": "assistant", "content": row["answer"]}
    return [answer] if not row["prompt"] else [{"role": "user", "content": row["prompt"]}, answer]
