"""`python -m ftaas_pipelines.stages.ranks STAGE --spec …`: a stage program as several processes, by torchrun.

Ends with its launcher, as every stage does, and its ranks end with it. On several nodes each node runs it,
told by torchrun's own variables (PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT).
"""

import os
import sys
from pathlib import Path

from ftaas_pipelines.errors import SpecUnusable
from ftaas_pipelines.stages import program
from ftaas_pipelines.stages import spec as specs


def main(argv: list[str]) -> int:
    """Start the ranks that the spec asks for; returns the exit code of the first one that failed."""
    stage, arguments = argv[0], argv[1:]
    try:
        distributed = processes(Path(arguments[arguments.index("--spec") + 1]))
    except SpecUnusable as error:
        print(error, file=sys.stderr)
        return error.exit_code
    program.end_with_parent()
    os.environ["FTAAS_LAUNCHER_PID"] = str(os.getpid())  # the ranks' parent is this process
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    options = ["--nproc-per-node", str(distributed["processes"])]
    if distributed["nodes"] > 1:
        options += ["--nnodes", str(distributed["nodes"])]
    elif "PET_MASTER_PORT" not in os.environ:
        options += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]  # any free port
    try:
        torchrun([*options, "-m", f"ftaas_pipelines.stages.{stage}", *arguments])
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return next((code for code in codes if code in (2, 3, 78, 130)), 1)
    except SignalException:
        return 130
    return 0


def processes(spec: Path) -> dict[str, int]:
    """How many processes and nodes a spec asks for; one of each where it says nothing."""
    training = specs.read(spec).inputs.get("training") or {}
    asked = training.get("distributed") or {}
    return {"processes": int(asked.get("processes", 1)), "nodes": int(asked.get("nodes", 1))}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
