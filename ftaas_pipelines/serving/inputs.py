"""What a Bento is made from: exactly what its input digest is taken over."""

from ftaas_pipelines.data.inputs import Inputs

BUILD_CONTRACT = 1


class BentoInputs(Inputs):
    """An adapter and the runtime to a Bento (artifact kind `bento`).

    `runtime` is the digest of the serving and inference source; releases that name the same runtime
    and base share one process.
    """

    contract: int = BUILD_CONTRACT
    project: str
    runtime: str
    adapter: str
    base: str
    family: str
    max_new_tokens: int
    threads: int
