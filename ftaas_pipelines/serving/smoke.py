"""Smoke questions: asked of a release that is loaded, before it answers anybody.

deployments/<environment>/smoke/<release>.json    what is asked, and the tokens that the evaluation saw

Our own engines must give those very tokens; another server has to answer.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter

from ftaas_pipelines.serving.desired import Desired, Folder, ReleaseToServe

if TYPE_CHECKING:  # those who only write questions need not load what asks them
    import httpx

    from ftaas_pipelines.serving.engines import AnsweringEngine

_WITHIN_S = 60.0
_SHOWN = 200  # characters


class Question(BaseModel):
    """A test prompt, as it was asked in the evaluation.

    Attributes:
        token_ids: the answer's tokens there; None: any answer will do.
    """

    messages: list[dict[str, Any]]
    max_tokens: int
    token_ids: list[int] | None = None


_QUESTIONS = TypeAdapter(list[Question])


def write(folder: Folder, release: str, questions: Sequence[Question], desired: Desired) -> None:
    """Have a release asked these; those of releases that nobody can want any more are forgotten."""
    if not questions:
        return
    place = folder.path / "smoke"
    place.mkdir(parents=True, exist_ok=True)
    kept = {release}
    for entry in desired.projects.values():
        kept |= {r.release for r in (*entry.releases, *entry.history)}
    for file in place.glob("*.json"):
        if file.stem not in kept:
            file.unlink(missing_ok=True)
    folder.write(f"smoke/{release}.json", _QUESTIONS.dump_python(list(questions), mode="json"))


def read(folder: Folder, release: str) -> list[Question]:
    """What a release is asked; nothing where nothing was written.

    Raises:
        ValueError: the file is not understood.
    """
    file = folder.path / "smoke" / f"{release}.json"
    return _QUESTIONS.validate_json(file.read_bytes()) if file.exists() else []


async def fault(
    engine: "AnsweringEngine",
    release: ReleaseToServe,
    questions: Sequence[Question],
    client: "httpx.AsyncClient",
) -> str | None:
    """Why a release must not answer; None: it gave every answer as it should."""
    faults = await asyncio.gather(*(_fault(engine, release, question, client) for question in questions))
    wrong = [(number, said) for number, said in enumerate(faults, 1) if said]
    if not wrong:
        return None
    number, said = wrong[0]
    return f"{len(wrong)} of {len(questions)} smoke questions failed; question {number}: {said}"


async def _fault(
    engine: "AnsweringEngine", release: ReleaseToServe, question: Question, client: "httpx.AsyncClient"
) -> str | None:
    import httpx

    body = {"messages": question.messages, "max_tokens": question.max_tokens, "return_token_ids": True}
    try:
        answer = await client.post(
            f"{engine.url}/v1/chat/completions",
            json=engine.asked(release, body),
            headers=engine.headers,
            timeout=_WITHIN_S,
        )
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text[:_SHOWN]}"
        choice = answer.json()["choices"][0]
        if question.token_ids is None or not engine.ours:
            return None if choice["message"]["content"] else "an empty answer"
        if choice["token_ids"] != question.token_ids[: release.max_new_tokens]:
            return f"other tokens than in the evaluation: {choice['message']['content'][:_SHOWN]!r}"
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        return f"no answer ({type(error).__name__}: {error})"
    return None
