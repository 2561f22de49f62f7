"""Review rounds as artifacts of the store: what people were asked and what they saw, by digest."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict

from ftaas_pipelines.review.rounds import Round, Task
from ftaas_pipelines.store import Artifact, Store, canonical, digest_of


def keep(store: Store, asked: Round, tasks: Iterable[Task]) -> Artifact:
    """The artifact of a round; the first one that was kept under this id stays what it is."""
    input_digest = digest_of({"round": asked.id, "project": asked.project})
    if found := store.find(input_digest):
        return found
    with store.create("round", input_digest) as draft:
        digest, count = hashlib.sha256(), 0
        with (draft.path / "tasks.jsonl").open("wb") as lines:
            for task in tasks:
                line = canonical({"key": task.key, "data": task.data, "sha256": task.sha256}) + b"\n"
                lines.write(line)
                digest.update(line)
                count += 1
        (draft.path / "form.xml").write_text(asked.form, "utf-8")
        draft.content = {**asdict(asked), "tasks": count, "tasks_sha256": digest.hexdigest()}
    return draft.made
