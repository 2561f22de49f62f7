"""Make the embedded bases again, or check them against the example projects' test rows.

python -m ftaas_pipelines.bases.make causal --out DIR
python -m ftaas_pipelines.bases.make t5 --out DIR
python -m ftaas_pipelines.bases.make vision --out DIR
python -m ftaas_pipelines.bases.make check [--projects DIR]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECTS = HERE.parents[1] / "projects"


def make_base(kind: str, folder: Path, steps: int | None) -> None:
    """Train one base and write its folder, with the record of how it was made."""
    # One thread: the order of additions, and so the weights, are then the same in every run.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
    from ftaas_pipelines.bases import causal, corpus, record, t5, vision

    program = {"causal": causal, "t5": t5, "vision": vision}[kind]
    model, reader, progress = program.train(steps or program.STEPS)  # its tokenizer, or its processor
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    reader.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors are written for the owner alone
    record.write_record(
        folder,
        kind,
        seed=program.SEED,
        parameters=model.num_parameters(),
        progress=progress,
        corpus_sha256=corpus.digest(causal.read_texts()),
    )


def check_contamination(projects: Path) -> int:
    """Print the figures and every hit; return the exit code."""
    from ftaas_pipelines.bases import contamination

    figures, hits = contamination.check(projects)
    for name, number in figures.items():
        print(f"{name:14} {number:>12,}")
    if not figures["test_runs"]:
        print(f"{projects}: no test rows found; name the folder of the projects with --projects")
        return 2
    for hit in hits:
        print(
            f"{hit.source}: '{hit.words}' also stands in the {hit.found_in}; change the row or the template"
        )
    print(f"{'hits':14} {len(hits):>12,}")
    return 1 if hits else 0


def main() -> int:
    """Read the command line and run one of the commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["causal", "t5", "vision", "check"])
    parser.add_argument("--out", type=Path, help="folder to write (default: the one in this package)")
    parser.add_argument("--steps", type=int, help="train for fewer steps, to try the program")
    parser.add_argument("--projects", type=Path, default=PROJECTS, help="folder of the example projects")
    arguments = parser.parse_args()
    if arguments.command == "check":
        return check_contamination(arguments.projects)
    make_base(arguments.command, arguments.out or HERE / f"tiny-{arguments.command}", arguments.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
