"""`python -m ftaas_pipelines.stages.build`: an adapter and the runtime to a Bento."""

import shutil
import sys
import time
from importlib.metadata import version

from pydantic import ValidationError

from ftaas_pipelines.errors import FtaasError, SpecUnusable
from ftaas_pipelines.serving import bento
from ftaas_pipelines.serving.inputs import BentoInputs
from ftaas_pipelines.stages import program
from ftaas_pipelines.stages.program import Report
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Artifact, Store
from ftaas_pipelines.training.remote_models import require_loadable


def make(spec: Spec, store: Store, report: Report) -> Artifact:
    """Build the Bento that a spec describes.

    Raises:
        SpecUnusable: the inputs are not those of a Bento.
        FtaasError: the adapter's bytes are not what its digest says.
    """
    try:
        inputs = BentoInputs.model_validate(spec.inputs)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["inputs", *(str(part) for part in first["loc"])])
        raise SpecUnusable(first["msg"], where, do="let `ftaas run` write the spec") from None
    started = time.monotonic()
    report.progress(0.05, "checking the adapter")
    adapter = require_loadable(store.get(inputs.adapter))
    problems = list(adapter.problems())
    if problems:
        raise FtaasError(problems)
    report.progress(0.2, "building the Bento")
    work = store.work(spec.input_digest)
    shutil.rmtree(work)  # a build is short: what an interrupted one left is of no use
    work.mkdir()
    with store.create("bento", spec.input_digest) as draft:
        tag = bento.build(inputs, adapter, spec.input_digest[:12], work, draft.path / "bento")
        draft.content = {
            "project": inputs.project,
            "runtime": inputs.runtime,
            "adapter": inputs.adapter,
            "base": inputs.base,
            "family": inputs.family,
            "tag": tag,
        }
        draft.attestation = {
            "seconds": round(time.monotonic() - started, 3),
            "versions": {"bentoml": version("bentoml")},
            "spec": spec.model_dump(mode="json", include={"stage", "project", "asset", "inputs"}),
        }
    store.clear_work(spec.input_digest)
    report.progress(1.0, f"built {tag}")
    return draft.made


if __name__ == "__main__":
    sys.exit(program.main("build", make))
