"""A new project folder: a commented `project.yaml` that is valid as it stands, and its data."""

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import yaml

from ftaas_pipelines.errors import InputInvalid, Problem
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.projects.dataset import Format
from ftaas_pipelines.projects.policy import PlatformPolicy

_EXAMPLE_ROWS = (
    {"instruction": "Say where the spare key is.", "output": "In the grey box beside the gate."},
    {"instruction": "Say who calls the lift company.", "output": "The porter on duty."},
)


@dataclass(frozen=True)
class Guess:
    """What was read off a data file.

    Attributes:
        columns: our column name to the file's, where they differ.
        records: rows that were looked at: at most the first 200.
        labels: how many different answers they have; tells labels from texts.
    """

    format: str = "alpaca"
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    records: int = 0
    labels: int = 0

    @property
    def task(self) -> str:
        if self.format in ("messages", "sharegpt"):
            return "chat"
        pairs = self.format in ("alpaca", "prompt_completion", "text_target")
        if pairs and self.records and self.labels <= self.records // 2:
            return "classification"
        return "correction" if self.format == "text_target" else "qa"


def check_name(name: str, root: Path) -> Path:
    """The folder a new project would get.

    Raises:
        InputInvalid: the name is none, or the folder is there.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,59}", name):
        do = "use small letters, digits and _, a letter first, 60 at most"
        raise InputInvalid("is not a project name", "NAME", name, do)
    folder = root / name
    if folder.exists():
        raise InputInvalid("the folder is there already", str(folder), do="choose another name or remove it")
    return folder


def people(policy: PlatformPolicy, tier: str, actor: str) -> dict[str, list[str]]:
    """Someone for every role, as many as the tier asks for, each of whom the policy allows.

    The owner is the actor where that is an e-mail that may own; a pattern such as `*@acme.org` becomes
    an address of that domain.
    """
    least = policy.tiers[tier]  # type: ignore[index]
    owner = actor if "@" in actor and policy.roles.allows("owner", actor) else ""
    owner = owner or next(iter(_named(policy.roles.owner, "owner")), "owner@example.com")
    approvers = max(least.approvals.values(), default=0)
    chosen = {"owners": [owner]}
    taken = {owner}
    for key, role, count in (
        ("smes", "sme", least.sme),
        ("rai_reviewers", "rai", least.rai),
        ("approvers", "approver", approvers),
    ):
        names = [n for n in _named(getattr(policy.roles, role), role) if n not in taken]
        chosen[key] = names[:count]
        taken.update(chosen[key])
    return chosen


def _named(allowed: list[str], role: str) -> list[str]:
    exact = [a for a in allowed if "*" not in a and "?" not in a]
    return exact + [a.replace("*", role, 1) for a in allowed if a not in exact and a.startswith("*@")]


def write(
    root: Path,
    policy: PlatformPolicy,
    name: str,
    text: str,
    data: Mapping[str, Path | bytes],
    data_may_follow: bool = False,
) -> list[Problem]:
    """Make the project folder, whole or not at all. Returns the data files that are still to come.

    Args:
        text: the `project.yaml`.
        data: file name below `data/` to the file that is copied there, or to its bytes.
        data_may_follow: make it although data files are missing.

    Raises:
        InputInvalid: the folder is there, cannot be written, or the project would not be valid.
    """
    folder = check_name(name, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        # A dot in front: the catalog does not see it while it is being written.
        draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    except OSError as error:
        do = "make it writable or set FTAAS_PROJECTS"
        raise InputInvalid("cannot be written", str(root), error.strerror or "", do) from None
    try:
        draft.chmod(0o755)
        (draft / "data").mkdir()
        for file, source in data.items():
            target = draft / "data" / file
            if isinstance(source, bytes):
                target.write_bytes(source)
            else:
                shutil.copyfile(source, target)
        (draft / catalog.FILE).write_text(text, encoding="utf-8")
        missing = _missing_data(draft, policy)
        if missing and not data_may_follow:
            raise InputInvalid(missing)
        draft.rename(folder)
    except OSError as error:
        do = "free space or make it writable"
        raise InputInvalid("cannot be written", str(folder), error.strerror or "", do) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return [replace(p, where=p.where.replace(str(draft), str(folder))) for p in missing]


def _missing_data(folder: Path, policy: PlatformPolicy) -> list[Problem]:
    try:
        catalog.read(folder / catalog.FILE, policy)
    except InputInvalid as error:
        if any(p.what != catalog.NO_DATA for p in error.problems):
            raise
        return error.problems
    return []


def example_data() -> bytes:
    """Two rows that show the form of a data file."""
    return "".join(json.dumps(row) + "\n" for row in _EXAMPLE_ROWS).encode()


def render(name: str, guess: Guess, who: Mapping[str, list[str]], data_file: str) -> str:
    """The commented `project.yaml` of a new project."""
    formats = ", ".join(name for name in get_args(Format) if name != guess.format)
    metric = {"classification": "exact_match", "correction": "chrf"}.get(guess.task, "token_f1")
    base = "embedded/tiny-t5" if guess.task == "correction" else "embedded/tiny-causal"
    columns = (
        f"\n  columns: {_flow(dict(guess.columns))}  # our name: the file's name" if guess.columns else ""
    )
    return f"""\
# One use case. `ftaas project validate {name}` checks it, `ftaas project schema` lists every key.
name: {name}
title: {name.replace("_", " ").capitalize()}
task: {guess.task}  # qa, chat, functions, agents, classification, correction or extraction
intended_use: Say here who uses the answers, and for what.
risk_tier: low  # low, medium, high: decides how many people must sign (the platform policy says)
data_sensitivity: internal  # public, internal, confidential, restricted

people:  # each must be allowed in the platform policy; an owner never signs
  owners: {_flow(who["owners"])}
  smes: {_flow(who["smes"])}  # sign the dataset: is it right?
  rai_reviewers: {_flow(who["rai_reviewers"])}  # sign the dataset: is it responsible?
  approvers: {_flow(who["approvers"])}  # let a release go to production

dataset:
  format: {guess.format}  # or: {formats}{columns}
  sources:  # rows are shared out 80/10/10; a source with `split: test` is the test instead
    - {{name: rows, path: {_flow(f"data/{data_file}")}}}

base_model:
  id: {base}  # or a folder, or a Hugging Face Hub id

recipes:  # one adapter each; the best on validation becomes the candidate
  - name: lora
    training: {{epochs: 3, batch_size: 16, learning_rate: 0.003}}  # 0.0002 suits models of a billion and more

evaluation:
  primary: {metric}  # exact_match, token_f1, rouge_l or chrf: chooses, and must beat the naive baseline
"""


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000, sort_keys=False)
    return text.removesuffix("...\n").strip()
