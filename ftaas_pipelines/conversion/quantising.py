"""Weights in 8 or 4 bits, by bitsandbytes: what it writes, transformers opens anywhere, also on a CPU."""

import logging
import warnings
from pathlib import Path
from typing import Any, Literal

from ftaas_pipelines.conversion.inputs import Precision
from ftaas_pipelines.conversion.merging import dtype
from ftaas_pipelines.inference import bases
from ftaas_pipelines.training import save


def write(whole: Path, folder: Path, kind: Literal["int8", "int4"], rest: Precision) -> None:
    """Quantise the linear layers of a model folder; the output layer and the embeddings stay as they are.

    int8 is LLM.int8() (Dettmers et al. 2022): rows of weights in 8 bits, outlier columns of the input in
    16. int4 is NF4 with doubly quantised constants (Dettmers et al. 2023), blocks of 64 weights.

    Args:
        whole: folder of the merged model in fp32: rounded once, not twice.
        rest: precision of all that is not quantised.
    """
    import torch
    from transformers import BitsAndBytesConfig

    quiet()
    if kind == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    model: Any = bases.load_model(whole, quantization_config=config)
    for parameter in model.parameters():
        if parameter.dtype == torch.float32:  # the quantised are bytes
            parameter.data = parameter.data.to(dtype(rest))
    model.config.dtype = dtype(rest)
    save.full(model, bases.load_tokenizer(whole), whole, folder)


def quiet() -> None:
    """Keep bitsandbytes from saying for every layer that it computes in half precision."""
    warnings.filterwarnings("ignore", message="MatMul8bitLt")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
