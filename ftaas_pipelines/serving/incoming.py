"""What comes over a caller's connection: a body, within bounds; and word that the caller has hung up."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from starlette.requests import ClientDisconnect, Request

from ftaas_pipelines.serving.openai_shapes import RequestRefused

MOST_BYTES = 4 << 20  # a body: long prompts and some images
# In a body's JSON, by its commas and brackets, in texts too. Reading a million of them takes ten seconds, in
# which nobody else is heard; a prompt that the platform's guard lets pass has room.
MOST_VALUES = 32_000
READ_WITHIN_S = 20.0  # a body that comes more slowly is not waited for


async def body_of(http: Request) -> bytes:
    """The bytes of a body: not too many, not too slow, and no more values in it than can be read in passing.

    Raises:
        RequestRefused: 400, 408 or 413; 499, the caller left in the middle.
    """
    try:
        async with asyncio.timeout(READ_WITHIN_S):
            raw = await _bytes(http)
    except TimeoutError:
        raise RequestRefused(
            408, "The body came too slowly", "request_timeout", None, {"connection": "close"}
        ) from None
    except ClientDisconnect:
        raise RequestRefused(499, "The caller left", "caller_left") from None
    if sum(map(raw.count, b",[{")) > MOST_VALUES:
        raise RequestRefused(400, f"The body has more than {MOST_VALUES} values in it", "too_many_values")
    return raw


async def _bytes(http: Request) -> bytes:
    too_large = RequestRefused(
        413, f"The body is larger than {MOST_BYTES >> 20} MiB", "request_too_large", None,
        {"connection": "close"},
    )  # fmt: skip
    if int(http.headers.get("content-length") or 0) > MOST_BYTES:
        raise too_large
    pieces: list[bytes] = []
    size = 0
    async for piece in http.stream():
        size += len(piece)
        if size > MOST_BYTES:
            raise too_large
        pieces.append(piece)
    return b"".join(pieces)


@contextlib.asynccontextmanager
async def while_there(http: Request) -> AsyncGenerator[None]:
    """Give up what is done inside when the caller hangs up.

    Raises:
        RequestRefused: 499, the caller left.
    """
    asking, watch = asyncio.current_task(), asyncio.ensure_future(_gone(http))
    assert asking is not None
    left: list[bool] = []

    def give_up(_: "asyncio.Future[None]") -> None:
        left.append(asking.cancel())

    watch.add_done_callback(give_up)
    try:
        yield
    except asyncio.CancelledError:
        if not left or asking.uncancel() > 0:  # somebody else wants it to end
            raise
        raise RequestRefused(499, "The caller left", "caller_left") from None
    finally:
        watch.remove_done_callback(give_up)
        watch.cancel()


async def _gone(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
