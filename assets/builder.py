"""From one project to its assets and checks: the only place that knows the whole line as Dagster sees it."""

from collections.abc import Callable

from assets import adapter, bento, candidate, dataset, deployment, evaluation, release, reviews, source
from assets.builder_types import Definition
from ftaas_pipelines.projects.catalog import Loaded


def project_assets(loaded: Loaded) -> list[Definition]:
    """The line of one project, in the order in which data flows."""
    makers: list[Callable[[Loaded], list[Definition]]] = [
        source.define,
        dataset.define,
        reviews.define_dataset_reviews,
        adapter.define,
        candidate.define,
        evaluation.define,
        bento.define,
        release.define,
        reviews.define_approvals,
        deployment.define,
    ]
    return [definition for make in makers for definition in make(loaded)]
