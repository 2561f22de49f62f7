"""What a training will do, worked out before anything heavy is loaded. Pure."""

import math
from collections.abc import Mapping

from ftaas_pipelines.projects.project import Training

EVALUATIONS, CHECKPOINTS, LOGS = 10, 10, 60
VALIDATION_ROWS = 128


def resolve_training(training: Training, counts: Mapping[str, int]) -> Training:
    """The training with every default written in that depends on the data.

    `epochs` is made to agree with `max_steps`, so that two ways of asking for the same steps are
    one input digest.

    Args:
        counts: records of each split.
    """
    per_epoch = steps_per_epoch(training, counts["train"])
    max_steps = training.max_steps or max(1, math.ceil(training.epochs * per_epoch))
    return training.model_copy(
        update={
            "max_steps": max_steps,
            "epochs": round(max_steps / per_epoch, 6),
            "eval_steps": training.eval_steps or math.ceil(max_steps / EVALUATIONS),
            "save_steps": training.save_steps or math.ceil(max_steps / CHECKPOINTS),
        }
    )


def steps_per_epoch(training: Training, records: int) -> int:
    """Optimizer steps that see every record once; the last may be smaller."""
    batches = math.ceil(records / training.batch_size)
    return max(1, math.ceil(batches / training.gradient_accumulation))


def logging_steps(max_steps: int) -> int:
    """Optimizer steps between two logged figures: about sixty a run draw a smooth curve."""
    return max(1, max_steps // LOGS)
