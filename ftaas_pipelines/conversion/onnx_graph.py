"""A decoder-only model as an ONNX graph with a key-value cache: what ONNX Runtime runs, step after step.

Inputs and outputs are named as Hugging Face's Optimum names them, so that its loaders open the folder too:
`input_ids`, `attention_mask`, `position_ids`, `past_key_values.N.key|value` to `logits`,
`present.N.key|value`.
"""

import contextlib
import io
import logging
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.conversion.inputs import Precision
from ftaas_pipelines.inference import bases
from ftaas_pipelines.training import save

if TYPE_CHECKING:
    import torch
    from onnx_ir import Model as Graph
    from transformers import PreTrainedModel

FILE = "model.onnx"
_OPSET = 20
_LARGE = 1 << 30  # bytes of weights; protobuf ends at 2 GiB: beyond this they go to a file beside the graph
_ROWS, _PAST, _NEW = 2, 3, 4  # of the example that is traced; every one of them stays free


def write(model: "PreTrainedModel", source: Path, folder: Path, precision: Precision) -> None:
    """Write `model.onnx` with configuration and tokenizer beside it.

    The exporter is torch.export's: it follows the program with sizes that stay symbols, where the older
    tracer keeps whatever way the example took.

    Args:
        source: folder of the tokenizer.
        precision: fp32, or int8: weights in 8 bits, also of embeddings and output layer, and each step's
            inputs of the linear layers as well (ONNX Runtime's dynamic quantisation).
    """
    import onnx_ir

    graph = _exported(model)
    _without_making(graph)
    _name_sizes(graph)
    large = sum(p.numel() for p in model.parameters()) * 4 > _LARGE
    onnx_ir.save(graph, folder / FILE, external_data=f"{FILE}.data" if large else None)
    if precision == "int8":
        _quantise(folder, large)
    _configuration(model, source, folder)


def _quantise(folder: Path, large: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = folder / "fp32"
    whole.mkdir()
    for file in folder.glob(f"{FILE}*"):
        file.rename(whole / file.name)
    logging.getLogger().addFilter(_no_advice)
    try:
        quantize_dynamic(
            whole / FILE,
            folder / FILE,
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
        )
    finally:
        logging.getLogger().removeFilter(_no_advice)
    shutil.rmtree(whole)


def _no_advice(record: logging.LogRecord) -> bool:
    """Keep out what ONNX Runtime says of every model, that its shapes could be worked out beforehand."""
    return "pre-processing before quantization" not in record.getMessage()


def _exported(model: "PreTrainedModel") -> "Graph":
    import torch
    from torch.export import Dim

    layers = model.config.num_hidden_layers
    free = Dim.AUTO
    sizes: Any = (
        {0: free, 1: free},
        {0: free, 1: free},
        {0: free, 1: free},
        [({0: free, 2: free}, {0: free, 2: free}) for _ in range(layers)],
    )
    pairs = [(kind, n) for n in range(layers) for kind in ("key", "value")]
    for name in ("torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)  # torchvision is not there, and is not wanted
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations inside torch and copyreg
        program = torch.onnx.export(
            _with_cache(model),
            _example(model),
            dynamo=True,
            input_names=["input_ids", "attention_mask", "position_ids"]
            + [f"past_key_values.{n}.{kind}" for kind, n in pairs],
            output_names=["logits"] + [f"present.{n}.{kind}" for kind, n in pairs],
            dynamic_shapes=sizes,
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None
    return program.model


def _with_cache(model: "PreTrainedModel") -> "torch.nn.Module":
    """The model as a function of tensors alone: its cache object is made inside."""
    import torch
    from transformers import DynamicCache

    class WithCache(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, past: Any) -> Any:
            out = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=DynamicCache(past),
                use_cache=True,
            )
            return out.logits, [(layer.keys, layer.values) for layer in out.past_key_values.layers]

    return WithCache()


def _example(model: "PreTrainedModel") -> tuple[Any, ...]:
    """Arguments of the shapes that a step has, all sizes different so that none is taken for another."""
    import torch

    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    past = torch.zeros(_ROWS, heads, _PAST, size)
    return (
        torch.zeros(_ROWS, _NEW, dtype=torch.long),
        torch.ones(_ROWS, _PAST + _NEW, dtype=torch.long),
        torch.arange(_PAST, _PAST + _NEW).repeat(_ROWS, 1),
        [(past.clone(), past.clone()) for _ in range(config.num_hidden_layers)],
    )


def _without_making(graph: "Graph") -> None:
    """Take out where each node came from: file names and lines of this machine."""
    graph.metadata_props.clear()
    graph.producer_version = None
    graph.graph.metadata_props.clear()
    for node in graph.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.graph.inputs, *graph.graph.initializers.values()):
        value.metadata_props.clear()


def _name_sizes(graph: "Graph") -> None:
    """Name the sizes that stay free, of inputs and outputs."""
    import onnx_ir

    names = {
        "input_ids": {0: "batch", 1: "new"},
        "attention_mask": {0: "batch", 1: "past + new"},
        "position_ids": {0: "batch", 1: "new"},
        "past_key_values": {0: "batch", 2: "past"},
        "logits": {0: "batch", 1: "new"},
        "present": {0: "batch", 2: "past + new"},
    }
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        assert value.name is not None and value.shape is not None
        named = names[value.name.partition(".")[0]]
        value.shape = onnx_ir.Shape([named.get(i, size) for i, size in enumerate(value.shape)])


def _configuration(model: "PreTrainedModel", source: Path, folder: Path) -> None:
    """What a reader needs beside the graph: config.json, generation_config.json, tokenizer, template."""
    whole = folder / "whole"
    save.full(model, bases.load_tokenizer(source), source, whole)
    for file in whole.iterdir():
        if not file.name.startswith("model."):
            file.rename(folder / file.name)
    shutil.rmtree(whole)
