"""The steps of a training, worked out before anything heavy is loaded. Pure."""

import math

from ftaas_pipelines.projects.method import Method
from ftaas_pipelines.projects.recipe import Training

EVALUATIONS, CHECKPOINTS, LOGS = 10, 10, 60
VALIDATION_ROWS = 128
EVALUATION_ROWS, EVALUATION_TOKENS = 32, 16_384


def resolve_training(training: Training, examples: int) -> Training:
    """The training with every default written in that depends on the data.

    `epochs` is made to agree with `max_steps`, so that two ways of asking for the same steps are
    one input digest.

    Args:
        examples: of the training split, as `batch_size` counts them: see `examples_of`.
    """
    per_epoch = steps_per_epoch(training, examples)
    max_steps = training.max_steps or max(1, math.ceil(training.epochs * per_epoch))
    eval_steps = training.eval_steps or math.ceil(max_steps / EVALUATIONS)
    save_steps = training.save_steps or math.ceil(max_steps / CHECKPOINTS)
    if training.early_stopping:  # the best weights come from a checkpoint: each evaluation has one
        save_steps = eval_steps
    return training.model_copy(
        update={
            "max_steps": max_steps,
            "epochs": round(max_steps / per_epoch, 6),
            "eval_steps": eval_steps,
            "save_steps": save_steps,
        }
    )


def examples_of(method: Method, records: int) -> int:
    """What `batch_size` counts of so many records: a method that samples counts its answers."""
    return records * getattr(method, "generations", 1)


def steps_per_epoch(training: Training, examples: int) -> int:
    """Optimizer steps that see every example once; the last may be smaller."""
    batches = math.ceil(examples / (training.batch_size * training.distributed.world))
    return max(1, math.ceil(batches / training.gradient_accumulation))


def logging_steps(max_steps: int) -> int:
    """Optimizer steps between two logged figures: about sixty a run draw a smooth curve."""
    return max(1, max_steps // LOGS)


def evaluation_batch(training: Training) -> int:
    """Examples of one forward pass for the validation loss: many short ones, few long ones."""
    return max(training.batch_size, min(EVALUATION_ROWS, EVALUATION_TOKENS // training.max_seq_tokens))
