"""Models that stayed with a provider: known here by their name and evidence, never loaded."""

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.store import Artifact, short


def require_loadable(adapter: Artifact) -> Artifact:
    """An adapter whose weights are here.

    Raises:
        InputInvalid: it is the name of a model at a provider.
    """
    content = adapter.content
    if content.get("adapter") == "remote":
        raise InputInvalid(
            f"the model stayed at its provider ({content['provider']}): it cannot be loaded here",
            f"adapter {short(adapter.digest)}",
            content["model"],
            "ask it there, or train the recipe on this platform's machines or on SageMaker",
        )
    return adapter
