"""Peak memory of a training, worked out from shapes alone.

Weights, gradients and optimizer states: Rajbhandari et al. 2020 (ZeRO), table 1; nf4: Dettmers et al. 2023
(QLoRA), section 3. Activations: what autograd keeps for the backward pass, tensor by tensor as transformers'
Llama and T5 layers save it (counted with `torch.autograd.graph.saved_tensors_hooks`; after Korthikanti et al.
2022). A test counts them again on the installed versions.

On a GPU the figure is what PyTorch allocates there, on each GPU; on a CPU it is the whole process.
"""

from dataclasses import dataclass

from ftaas_pipelines.projects.adapter import LoRA
from ftaas_pipelines.training import plan
from ftaas_pipelines.training.planning.job import Job
from ftaas_pipelines.training.planning.network import Stack

GIB = 2**30
# Python with torch, transformers and TRL, before a model is read (measured with this lock: 0.56 to 0.58).
PROCESS_GIB = 0.57
# What oneDNN and MKL take at the first passes, and how much more than asked for stands in freed pieces of
# another size (measured on the embedded bases, batches of 8 to 32).
_WARM_GIB, _PIECES = 0.04, 1.4
CONTEXT_GIB = 0.6  # of CUDA itself, beside what PyTorch allocates
_NF4 = {True: (4 + 0.127) / 8, False: (4 + 0.5) / 8}  # bytes a number, with and without double quantisation
STATES = {  # bytes of optimizer state for each number that learns
    "adamw_torch": 8.0,
    "adamw_torch_fused": 8.0,
    "adamw_8bit": 2.0,
    "paged_adamw_8bit": 2.0,
    "lion_8bit": 1.0,
    "adafactor": 0.1,
    "sgd": 0.0,
}
_LOGITS = 12  # bytes for each word of the vocabulary and token: log-softmax, and two gradients, in fp32
_FUSED_TOKENS = 1024  # that TRL's fused head scores at a time; on a CPU it is not used (training.methods.sft)
_WHOLE_HEAD = ("seq2seq", "orpo", "distillation")
_NO_HEAD = ("classification", "reward")


@dataclass(frozen=True)
class Memory:
    """Bytes by what holds them."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    process: float

    @property
    def gib(self) -> float:
        held = self.weights + self.gradients + self.optimizer + self.activations + self.logits
        return (held + self.process) / GIB


def peak(job: Job, longest: int, longest_written: int = 0) -> Memory:
    """Peak memory of one process (GPU) when a batch is as long as the longest examples.

    Args:
        longest: tokens of the longest sequence, of an encoder-decoder as it reads it.
        longest_written: of an encoder-decoder: tokens of its longest answer.
    """
    sequences = job.training.batch_size * job.sequences
    learnt = job.network.trained(job.adapter)
    weights, gradients, states = _weights(job), 4.0 * learnt, STATES[job.training.optimizer] * learnt
    world, strategy = job.training.distributed.world, job.training.distributed.strategy
    if strategy in ("zero1", "zero2", "zero3", "fsdp2"):
        states /= world
    if strategy in ("zero2", "zero3", "fsdp2"):
        gradients /= world
    if strategy in ("zero3", "fsdp2"):  # one layer is gathered while the next is fetched
        weights = weights / world + 2 * weights / max(1, job.network.layers)
    teacher = 0.0
    if job.teacher:
        teacher = job.teacher.parameters * (2.0 if job.training.precision == "bf16" else 4.0)
    scoring = sequences * _logits(job, longest_written or longest, sequences)
    learning = sequences * _activations(job, longest, longest_written) + scoring
    most = max(learning, _judging(job, longest, longest_written))
    on_cpu = job.device == "cpu"
    loose = _PIECES if on_cpu else 1.0
    return Memory(
        weights=weights + teacher,
        gradients=gradients,
        optimizer=states,
        activations=(most - scoring) * loose,
        logits=scoring * loose,
        process=(PROCESS_GIB + _WARM_GIB) * GIB if on_cpu else 0.0,
    )


def left_behind(job: Job, read: int, written: int = 0) -> float:
    """Bytes that a forward pass of one sequence leaves for the backward pass, logits with them."""
    sequences = job.training.batch_size * job.sequences
    return _activations(job, read, written) + _logits(job, written or read, sequences)


def _weights(job: Job) -> float:
    """Bytes of the network and its adapter."""
    network = job.network
    if job.whole:  # in fp32, and autocast keeps a copy of what it multiplies with
        copies = 4.0 + (2.0 if job.training.precision != "fp32" else 0.0)
        return network.parameters * (copies + (4.0 if job.second_copy else 0.0))
    adapter = lora(job)
    each = 2.0 if job.device == "cuda" and job.training.precision == "bf16" else 4.0
    base = network.parameters * each
    if adapter.quantise:  # PEFT brings what is not quantised to fp32
        packed = _NF4[adapter.double_quantise] if adapter.quantise == "nf4" else 1.0
        base = network.body * packed + network.frozen_small * 4.0
        base += 2.0 * max((out * inn for out, inn in network.linears.values()), default=0)  # one, unpacked
    elif each == 4.0 and job.training.precision != "fp32":
        base += 2.0 * network.body
    if job.second_copy:
        base *= 2
    return base + 4.0 * network.trained(adapter)


def _activations(job: Job, read: int, written: int) -> float:
    """Bytes that the backward pass needs of one sequence, besides logits."""
    encoder, decoder = job.network.encoder, job.network.decoder
    if encoder is None:
        return _of_stack(job, decoder, read, read)
    return _of_stack(job, encoder, read, read) + _of_stack(job, decoder, written, read)


def _of_stack(job: Job, stack: Stack, tokens: int, seen: int) -> float:
    layer = tokens * _per_token(job, stack) + _scores(job, stack, tokens, seen)
    if job.training.gradient_checkpointing:  # the input of each layer, and one layer whole
        return stack.layers * tokens * stack.width * _stream(job) + layer
    return stack.layers * layer


def _stream(job: Job) -> float:
    """Bytes of a number of the residual stream."""
    return 2.0 if job.device == "cuda" and not job.whole and job.training.precision == "bf16" else 4.0


def _per_token(job: Job, stack: Stack) -> float:
    """Bytes that one token leaves behind in one layer.

    Two norms keep their input in fp32; attention its queries, keys, values and result; the feed-forward part
    its inner values before and after the gate. An adapter keeps the input of each layer it stands beside, for
    the gradient of A, and r numbers for that of B.
    """
    each = 2.0 if job.training.precision != "fp32" else 4.0
    attention = (2 * stack.attended + 2 * stack.kept) * each
    norms = 2 * stack.width * 4.0 * (2 if job.whole else 1)
    inner = (3 if stack.gated else 0.5) * stack.inner * each
    if stack.crossed:
        attention, norms = 2 * attention, 1.5 * norms
    beside = (job.network.linears if job.whole else job.network.targets(lora(job))).values()
    count = max(1, job.network.layers)
    wide = sum(inn for _, inn in beside) / count
    # In one precision, layers that read the same share what is kept of it; autocast makes a copy for each.
    kept = each * (wide if each == 2.0 else min(wide, 2 * stack.width + stack.inner))
    if not job.whole:
        kept += _of_adapter(lora(job), wide, sum(out for out, _ in beside) / count, len(beside) / count, each)
    return attention + norms + inner + kept


def _of_adapter(adapter: LoRA, wide: float, out: float, count: float, each: float) -> float:
    """Bytes of one token in one layer for the adapter's own computations."""
    ranks = adapter.r * count * each
    dropped = wide * (each + 2) if adapter.dropout else 0.0
    scaled = 2 * out * each if adapter.dora else 0.0
    return ranks + dropped + scaled


def lora(job: Job) -> LoRA:
    assert isinstance(job.adapter, LoRA)
    return job.adapter


def _scores(job: Job, stack: Stack, tokens: int, seen: int) -> float:
    """Bytes of attention scores in one layer, which eager attention writes out twice."""
    if job.training.attention != "eager":
        return 0.0
    each = 4.0 + (2.0 if job.training.precision != "fp32" else 4.0)
    return each * stack.heads * tokens * (tokens + (seen if stack.crossed else 0))


def _logits(job: Job, written: int, sequences: int) -> float:
    """Bytes of scoring one sequence over the vocabulary."""
    kind = job.method.kind
    if kind in _NO_HEAD:
        return 0.0
    per_token = _LOGITS * job.network.vocabulary * (2.0 if kind == "distillation" else 1.0)
    if job.device == "cpu" or kind in _WHOLE_HEAD:
        return written * per_token
    return min(written, _FUSED_TOKENS / sequences) * per_token


def _judging(job: Job, read: int, written: int) -> float:
    """Bytes of a forward pass for the validation loss: no layer keeps anything, logits stand twice."""
    at_once = plan.evaluation_batch(job.training) * job.sequences
    tokens, kind = written or read, job.method.kind
    head = 0.0 if kind in _NO_HEAD else 8.0 * job.network.vocabulary
    if job.device == "cuda" and kind not in _WHOLE_HEAD:
        head *= min(1.0, _FUSED_TOKENS / max(1, at_once * tokens))
    stack, each = job.network.decoder, 2.0 if job.training.precision != "fp32" else 4.0
    return at_once * (tokens * head + max(tokens, read) * each * (3 * stack.inner + 4 * stack.width))
