"""An ONNX graph in the shape of a transformers model, so that the engine asks it like any other."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import onnxruntime
import torch  # noqa: TID253 imported by stage programs only
from transformers import AutoConfig, GenerationConfig  # noqa: TID253

from ftaas_pipelines.conversion.onnx_graph import FILE
from ftaas_pipelines.inference import bases
from ftaas_pipelines.inference.forward import Network


class Cache:
    """Keys and values of every layer, `[rows, heads, tokens, size]`, in the order of the graph's inputs."""

    def __init__(self, tensors: list[torch.Tensor]):
        self.tensors = tensors

    def batch_select_indices(self, keep: torch.Tensor) -> None:
        """Go on with these rows alone."""
        self.tensors = [tensor[keep] for tensor in self.tensors]


class OnnxModel:
    """Runs `model.onnx` of a folder on the CPU.

    Args:
        threads: CPU threads of ONNX Runtime.
    """

    device = torch.device("cpu")

    def __init__(self, folder: Path, threads: int):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            str(folder / FILE), options, providers=["CPUExecutionProvider"]
        )
        self.config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        if (folder / "generation_config.json").is_file():
            self.generation_config: Any = GenerationConfig.from_pretrained(folder, local_files_only=True)
        named = [i for i in self._session.get_inputs() if i.name.startswith("past_key_values.")]
        self._past = [(i.name, i.shape[1], i.shape[3]) for i in named]

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: Cache | None = None,
        use_cache: bool = True,
    ) -> SimpleNamespace:
        """One step: `logits` of the new tokens `[rows, new, vocab]`, and the cache with them in it."""
        rows = input_ids.shape[0]
        past = (
            past_key_values.tensors
            if past_key_values
            else [torch.zeros(rows, heads, 0, size) for _, heads, size in self._past]
        )
        feed = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        feed |= {name: tensor for (name, _, _), tensor in zip(self._past, past, strict=True)}
        out = self._session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
        logits, *present = (torch.from_numpy(array) for array in out)
        return SimpleNamespace(logits=logits, past_key_values=Cache(present))

    __call__ = forward


def load(folder: Path, threads: int) -> Network:
    """The network of an ONNX folder."""
    return Network(cast(Any, OnnxModel(folder, threads)), bases.load_tokenizer(folder), "causal")
