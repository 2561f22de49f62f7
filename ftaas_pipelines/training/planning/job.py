"""What is to be computed: a resolved recipe on a base, and how often each method passes the network."""

from dataclasses import dataclass, replace
from typing import Literal

from ftaas_pipelines.projects.adapter import Adapter, FullFineTuning, LoRA
from ftaas_pipelines.projects.method import Grpo, Method, Rloo
from ftaas_pipelines.projects.recipe import Sweep, Training
from ftaas_pipelines.training import machine
from ftaas_pipelines.training.materials import Materials
from ftaas_pipelines.training.planning import network
from ftaas_pipelines.training.planning.network import Network

ONLINE = ("grpo", "rloo")  # what they learn from is sampled on the way: no batch of it exists beforehand
_PAIRS = ("dpo", "orpo", "reward")
# Forward passes beside the one that learns, of the same sequences: by a reference, for a KL estimate.
_FORWARD = {"dpo": 1.0, "kto": 3.0}


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        device: what computes it.
        teacher: of a distillation.
    """

    method: Method
    adapter: Adapter
    training: Training
    network: Network
    device: Literal["cpu", "cuda"]
    threads: int = 1
    teacher: Network | None = None
    sweep: Sweep | None = None

    @property
    def online(self) -> bool:
        return self.method.kind in ONLINE

    @property
    def whole(self) -> bool:
        """Every weight learns."""
        return isinstance(self.adapter, FullFineTuning)

    @property
    def sequences(self) -> int:
        """Sequences that one example is."""
        return 2 if self.method.kind in _PAIRS else 1

    @property
    def forward_only(self) -> float:
        """Forward passes of each sequence that nothing is learnt from, in passes of this network."""
        kind, method = self.method.kind, self.method
        passes = _FORWARD.get(kind, 0.0)
        if isinstance(method, Grpo | Rloo):
            passes += 1.0 if method.beta else 0.0
            passes += 1.0 if isinstance(method, Rloo) and method.reward_model else 0.0
        if self.teacher:
            passes += self.teacher.parameters / self.network.parameters
        return passes

    @property
    def second_copy(self) -> bool:
        """Whether frozen weights stand beside those that learn: a low-rank adapter is only switched off."""
        refers = self.method.kind in ("dpo", "kto") or bool(getattr(self.method, "beta", 0.0) and self.online)
        scored = isinstance(self.method, Rloo) and self.method.reward_model is not None
        return scored or (refers and self.whole)

    @property
    def packing(self) -> bool:
        return getattr(self.method, "packing", "none") != "none"

    @property
    def workers(self) -> int:
        """GPUs, or cores, that compute on each node."""
        return self.training.distributed.processes * (1 if self.device == "cuda" else self.threads)

    def with_training(self, **changed: object) -> "Job":
        return replace(self, training=self.training.model_copy(update=changed))

    def lighter(self) -> "tuple[str, Job] | None":
        """The same with weights that take less, in the recipe's words; None where that is not to be had."""
        if self.whole:
            return "adapter: {kind: lora} in place of full", replace(self, adapter=LoRA())
        assert isinstance(self.adapter, LoRA)
        if self.device != "cuda" or self.adapter.quantise or self.adapter.init != "default":
            return None
        adapter = self.adapter.model_copy(update={"quantise": "nf4"})
        return "adapter.quantise: nf4 (QLoRA)", replace(self, adapter=adapter)


def of(materials: Materials) -> Job:
    """The job of a training that is about to begin on this machine."""
    inputs = materials.inputs
    return Job(
        method=inputs.method,
        adapter=inputs.adapter,
        training=inputs.training,
        network=network.read(materials.base),
        device=machine.found().device,
        threads=inputs.threads,
        teacher=network.read(materials.teacher) if materials.teacher else None,
        sweep=inputs.sweep,
    )
