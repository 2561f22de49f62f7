"""How long a training takes: from arithmetic and the machine's rates, where nothing of it has run yet.

Operations: 2 for each parameter and token forward, 2 more backward for the activations, 2 more for each
parameter that learns (Kaplan et al. 2020, appendix B; LoRA spares the last for the base). On a small model
most of the time goes into moving activations and into calls, so both are counted.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import ceil
from statistics import median

from ftaas_pipelines.projects.prices import Terms
from ftaas_pipelines.training import plan
from ftaas_pipelines.training.planning import memory
from ftaas_pipelines.training.planning.job import Job
from ftaas_pipelines.training.planning.network import Stack

SAMPLE_TOKENS = 48  # of each answer that is sampled at an evaluation (training.samples)
# Shares of numpy's rates that a training step reaches, and calls of one layer, forward and backward, in numpy
# calls. Fitted to the embedded bases: batches of 4 to 32, LoRA and full, Llama and T5 (benchmarks.quotes).
_OF_MATMUL, _OF_ADD, _LAYER_CALLS, _ADAPTER_CALLS = 0.65, 0.6, 2200, 90
_STEP_CALLS, _OPTIMIZER_CALLS, _DECODE_CALLS, _ADAPTER_DECODE_CALLS = 7000, 25, 1000, 85
_GPU_CALL_S = 0.6e-6  # the same Python stands before a GPU; it computes meanwhile
_SAVE_S, _SAVE_BYTES_PER_S = 0.08, 300e6
_MOVED = 3  # what is kept of a layer is written, read, and met once more by its gradient


@dataclass(frozen=True)
class Pace:
    """How fast one worker is.

    Attributes:
        flops: operations a second in a training step.
        bytes: that it moves a second.
        call_s: seconds that one small operation costs whatever its size; `aside`: while others compute.
        decode_bytes: that it reads a second while it writes an answer token by token.
    """

    flops: float
    bytes: float
    call_s: float
    decode_bytes: float
    aside: bool = False

    def seconds(self, operations: float, moved: float, calls: float) -> float:
        """One pass."""
        computing, calling = operations / self.flops + moved / self.bytes, calls * self.call_s
        return max(computing, calling) if self.aside else computing + calling


def pace(job: Job, terms: Terms) -> Pace:
    """The pace of the machine that a budget names."""
    if job.device == "cuda":
        flops = (terms.tflops or 1.0) * 1e12  # what it reaches: moving activations is part of that
        if job.training.precision == "fp32":
            flops /= 4
        return Pace(flops, float("inf"), _GPU_CALL_S, terms.gb_per_s * 1e9, aside=True)
    return this_cpu(job.threads)


@cache
def this_cpu(threads: int) -> Pace:
    """The pace of this processor, measured in a twentieth of a second: the middle one of some short tries.

    One thread is measured; more are taken to gain four fifths each.
    """
    import numpy as np
    from threadpoolctl import threadpool_limits

    a, b = np.ones((512, 256), np.float32), np.ones((256, 256), np.float32)
    out = np.empty((512, 256), np.float32)
    wide, small = np.ones(1 << 22, np.float32), np.ones(4, np.float32)
    moved = np.empty_like(wide)
    with threadpool_limits(1):  # on a busy machine numpy's threads wait for each other: 80 times slower
        matmul = 2 * a.shape[0] * b.size / _usual(lambda: np.matmul(a, b, out=out), 16)
    added = 2 * wide.nbytes / _usual(lambda: np.add(wide, 1.0, out=moved), 4)
    call = _usual(lambda: [np.add(small, 1.0, out=small) for _ in range(200)], 8) / 200
    gain = 1 + 0.8 * (threads - 1)
    return Pace(matmul * _OF_MATMUL * gain, added * _OF_ADD * gain**0.5, call, added * gain**0.5)


def _usual(work: Callable[[], object], tries: int) -> float:
    """CPU seconds of the middle try: others on the machine do not count, nor does its best moment."""
    took: list[float] = []
    work()  # the first one meets memory that was never touched
    for _ in range(tries):
        began = time.thread_time()
        work()
        took.append(time.thread_time() - began)
    return median(took)


@dataclass(frozen=True)
class Seconds:
    """Where the time of a training goes."""

    passes: float
    optimizer: float
    evaluation: float
    samples: float
    saving: float
    answering: float

    @property
    def total(self) -> float:
        return self.passes + self.optimizer + self.evaluation + self.samples + self.saving + self.answering


def estimate(
    job: Job,
    at: Pace,
    steps: float,
    padded: tuple[float, float],
    held: int,
    tokens_in_evaluation: float,
    answer_tokens: float = SAMPLE_TOKENS,
) -> Seconds:
    """Seconds of `steps` optimizer steps and of what stands between them.

    Args:
        padded: tokens of one sequence in a batch, read and (of an encoder-decoder) written, padding with it.
        held: examples that the validation loss is taken on.
        tokens_in_evaluation: of one of their sequences, padding with it.
        answer_tokens: of one answer.
    """
    training = job.training
    sequences = training.batch_size * job.sequences
    forward = forward_s(job, at, sequences, padded)
    backward = backward_s(job, at, sequences, padded)
    again = forward if training.gradient_checkpointing else 0.0
    one = forward * (1 + job.forward_only) + backward + again
    evaluations = steps // (training.eval_steps or steps or 1) if held else 0
    at_once = plan.evaluation_batch(training)
    batches = ceil(held / at_once) if held else 0
    judged = (tokens_in_evaluation, padded[1])
    judging = batches * forward_s(job, at, min(held, at_once) * job.sequences, judged)
    saves = steps // (training.save_steps or steps or 1)
    answers = training.samples if held and job.method.kind not in ("reward", "classification") else 0
    return Seconds(
        passes=steps * training.gradient_accumulation * one,
        optimizer=steps * optimizer_s(job, at),
        evaluation=evaluations * judging,
        samples=evaluations * answers * min(SAMPLE_TOKENS, answer_tokens) * decode_s(job, at, 1),
        saving=saves * saving_s(job),
        answering=steps * training.gradient_accumulation * _answering_s(job, at),
    )


def forward_s(job: Job, at: Pace, sequences: float, padded: tuple[float, float]) -> float:
    """One forward pass of a batch."""
    operations = sum(2 * m * t for m, t in _met(job, sequences, padded)) + _scored(job, sequences, padded)
    moved = _moved(job, sequences, padded) / 3
    return at.seconds(operations, moved, _calls(job) / 3)


def backward_s(job: Job, at: Pace, sequences: float, padded: tuple[float, float]) -> float:
    """One backward pass of a batch."""
    met = _met(job, sequences, padded)
    learnt = job.network.trained(job.adapter)
    tokens = max(t for _, t in met)
    operations = sum(2 * m * t for m, t in met) + 2 * _scored(job, sequences, padded)
    operations += 2 * min(learnt, sum(m for m, _ in met)) * tokens if job.whole else 6 * learnt * tokens
    moved = _moved(job, sequences, padded) * 2 / 3
    return at.seconds(operations, moved, _calls(job) * 2 / 3)


def _met(job: Job, sequences: float, padded: tuple[float, float]) -> list[tuple[float, float]]:
    """Parameters with the tokens that are multiplied with them."""
    network, (read, written) = job.network, padded
    writes = sequences * (written or read)
    head = 0.0 if job.method.kind in ("reward", "classification") else float(network.output)
    met = [(float(network.decoder.multiplied), writes), (head, writes)]
    if network.encoder:
        met.append((float(network.encoder.multiplied), sequences * read))
    return met


def _scored(job: Job, sequences: float, padded: tuple[float, float]) -> float:
    """Operations of attention itself: each token with each before it."""
    read, written = padded

    def of(stack: Stack, tokens: float, seen: float) -> float:
        return 4.0 * stack.layers * stack.attended * tokens * seen

    network = job.network
    if network.encoder is None:
        return sequences * of(network.decoder, read, read) / 2
    decoding = of(network.decoder, written, written) / 2 + of(network.decoder, written, read)
    return sequences * (of(network.encoder, read, read) + decoding)


def _moved(job: Job, sequences: float, padded: tuple[float, float]) -> float:
    """Bytes of activations and logits that a pass forward and back moves."""
    read, written = round(padded[0]), round(padded[1])
    return sequences * _MOVED * memory.left_behind(job, read, written)


def _calls(job: Job) -> float:
    """Small operations of one pass forward and back, in numpy calls."""
    beside = 0 if job.whole else len(job.network.targets(memory.lora(job)))
    return job.network.layers * _LAYER_CALLS + beside * _ADAPTER_CALLS


def optimizer_s(job: Job, at: Pace) -> float:
    """One update: clipping, moments, weights; and what the trainer does between two steps."""
    learnt = job.network.trained(job.adapter)
    tensors = 2 * len(job.network.targets(memory.lora(job))) if not job.whole else 9 * job.network.layers + 3
    on_gpu = job.device == "cuda"
    moved = learnt * 32.0 / at.decode_bytes
    calls = _STEP_CALLS + (0 if on_gpu else tensors * _OPTIMIZER_CALLS)
    return moved / job.training.distributed.world + calls * at.call_s


def decode_s(job: Job, at: Pace, answers: float) -> float:
    """One token of so many answers that are written side by side."""
    network = job.network
    weights = (network.decoder.multiplied + network.output) * (2.0 if job.device == "cuda" else 4.0)
    operations = 2.0 * answers * (network.decoder.multiplied + network.output)
    beside = 0 if job.whole else len(network.targets(memory.lora(job)))
    calls = network.decoder.layers * _DECODE_CALLS + beside * _ADAPTER_DECODE_CALLS
    return max(weights / at.decode_bytes, operations / at.flops) + calls * at.call_s


def _answering_s(job: Job, at: Pace) -> float:
    """Sampling the answers of one batch, where a method learns from its own."""
    tokens: int = getattr(job.method, "max_new_tokens", 0) if job.online else 0
    return tokens * decode_s(job, at, job.training.batch_size)


def saving_s(job: Job) -> float:
    """Writing one checkpoint: what learns, and its optimizer states."""
    learnt = job.network.trained(job.adapter)
    return _SAVE_S + learnt * (4.0 + memory.STATES[job.training.optimizer]) / _SAVE_BYTES_PER_S
