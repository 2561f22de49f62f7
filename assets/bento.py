"""`bento`: the built Bento. Nothing is built that could not be released."""

from typing import Any

import dagster as dg

from assets.automation import carry_on
from assets.builder_types import Definition
from assets.line import Line, open_line
from assets.making import attempt, by_stage, result
from assets.naming import common, key
from ftaas_pipelines import settings
from ftaas_pipelines.errors import Refused
from ftaas_pipelines.governance.evidence import release_problems
from ftaas_pipelines.projects.catalog import Loaded
from resources.launcher import SubprocessLauncher


def require_evidence(line: Line, asset: str) -> None:
    """The gate of the evaluation: thresholds, naive baseline, champion.

    Raises:
        Refused: the adapter is not good enough, with every reason.
    """
    if line.evaluation is None:
        line.bento_spec()  # raises NotMade, which names what is missing
    assert line.evaluation is not None
    problems = release_problems(line.policy, line.project, line.evaluation.content["scores"])
    if problems:
        raise Refused(problems)


def define(loaded: Loaded) -> list[Definition]:
    @dg.asset(
        **common(loaded, "bento", "The Bento: runtime by digest, adapter by digest.", "bentoml"),
        deps=[key(loaded, "evaluation")],
        automation_condition=carry_on(),
    )
    def bento(context: dg.AssetExecutionContext, launcher: SubprocessLauncher) -> dg.MaterializeResult[Any]:
        line = open_line(loaded.name, settings.load())
        with attempt(context, line, "bento"):
            require_evidence(line, "bento")
            made = by_stage(context, line, line.bento_spec(), launcher)
        return result(made, tag=made.artifact.content["tag"], runtime=made.artifact.content["runtime"])

    return [bento]
