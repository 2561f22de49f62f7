"""The files of Python rewards: beside project.yaml, part of what an adapter is made from by their digest."""

from pathlib import Path

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects.method import Method
from ftaas_pipelines.projects.reward import Python
from ftaas_pipelines.store import file_digest


def files(method: Method, folder: Path) -> dict[str, str]:
    """sha256 of each file that a method's Python rewards are read from, by its name.

    Raises:
        InputInvalid: one is not there, or leads out of the project's folder.
    """
    out: dict[str, str] = {}
    for grader in getattr(method, "rewards", ()):
        if not isinstance(grader, Python):
            continue
        name = grader.entry.partition(":")[0]
        path = (folder / name).resolve()
        if not path.is_file() or not path.is_relative_to(folder.resolve()):
            do = "write the file beside project.yaml, or mend the entry"
            raise InputInvalid(
                "the file of a reward is not there", "recipes.method.rewards", grader.entry, do
            )
        out[name] = file_digest(path)
    return out
