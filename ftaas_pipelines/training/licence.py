"""Under which licence a base stands: what the project, the catalogue and the base's own card say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ftaas_pipelines.errors import Problem, Refusal
from ftaas_pipelines.projects.base_model import BaseModelRef
from ftaas_pipelines.projects.licences import Licences
from ftaas_pipelines.projects.policy import OTHER_BASE
from ftaas_pipelines.training.catalogue import bases

_MOST_FRONT_MATTER = 100_000  # characters


def stated(ref: BaseModelRef, folder: Path) -> list[tuple[str, str]]:
    """Every licence that is stated of a base, as (licence, who states it), the project first."""
    entry = bases.find(ref.id)
    said = [
        (ref.licence, "the project"),
        (entry.licence if entry else "", "the catalogue"),
        (of_card(folder), "the README of the base"),
    ]
    return [(licence, who) for licence, who in said if licence]


def of_card(folder: Path) -> str:
    """The licence in the front matter of a base's README, as model cards have it; empty: there is none."""
    file = folder / "README.md"
    if not file.is_file():
        return ""
    text = file.read_text("utf-8", errors="replace")[:_MOST_FRONT_MATTER]
    opening, _, rest = text.partition("\n")
    if opening.strip() != "---":
        return ""
    try:
        card: Any = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:  # a broken card states nothing
        return ""
    if not isinstance(card, dict):
        return ""
    said: Any = card.get("license")
    if said == "other":
        said = card.get("license_name") or said
    return ", ".join(map(str, said)) if isinstance(said, list) else str(said or "")


def problems(
    ref: BaseModelRef, folder: Path, policy: Licences, project: Licences, where: str
) -> list[Problem]:
    """Why a base may not be used for its licence: at most one refusal.

    Each stated licence must not be forbidden, so that nobody talks a forbidden one away; the first must be
    among the allowed. A base of which nobody states a licence is refused only where a policy says so.
    """
    said = stated(ref, folder) or [("", "")]
    for whose, terms in (("the platform policy", policy), ("the project", project)):
        strict: Sequence[tuple[Licences, list[tuple[str, str]]]] = (
            (terms, said[:1]),
            (Licences(forbid=terms.forbid), said),
        )
        for rules, licences in strict:
            for licence, who in licences:
                if why := rules.why_not(licence):
                    got = f"{ref.id}: {licence}, says {who}" if licence else f"{ref.id}: none is stated"
                    do = OTHER_BASE if licence else f"state base_model.licence, or {OTHER_BASE}"
                    return [Refusal(f"{whose} {why}", where, got, do)]
    return []
