"""A Llama model as one GGUF file, for llama.cpp and what is built on it; and such a file opened again.

The layout is llama.cpp's (convert_hf_to_gguf.py): names by gguf's own table, rows of Q and K permuted for
its rotary embedding, matrices in the asked precision, vectors in fp32.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.conversion.gguf_tokenizer import Vocabulary, splitters, vocabulary
from ftaas_pipelines.conversion.inputs import Precision
from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.inference import bases

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter
    from transformers import PreTrainedModel

    from ftaas_pipelines.inference.forward import Network

FILE = "model.gguf"
_ARCHITECTURE = "llama"
_BLOCK = 32  # weights that share a scale in Q8_0


def write(model: "PreTrainedModel", source: Path, folder: Path, precision: Precision, name: str) -> None:
    """Write `model.gguf`.

    Args:
        source: folder of the tokenizer.
        name: how the file calls the model.

    Raises:
        InputInvalid: the tokenizer has no form in GGUF.
    """
    from gguf import GGUFWriter

    config = model.config
    words = vocabulary(bases.load_tokenizer(source), config.vocab_size)
    writer = GGUFWriter(folder / FILE, _ARCHITECTURE)
    writer.add_name(name)
    _shape(writer, config, precision)
    _words(writer, words)
    _tensors(writer, model, precision)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shape(writer: "GGUFWriter", config: Any, precision: Precision) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    kinds = {
        "fp32": LlamaFileType.ALL_F32,
        "fp16": LlamaFileType.MOSTLY_F16,
        "q8_0": LlamaFileType.MOSTLY_Q8_0,
    }
    writer.add_file_type(kinds[precision])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _words(writer: "GGUFWriter", words: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    writer.add_token_merges(words.merges)
    for name, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        if name in words.ids:
            add(words.ids[name])
    writer.add_add_bos_token(words.add_bos)
    writer.add_add_eos_token(words.add_eos)
    if words.chat_template:
        writer.add_chat_template(words.chat_template)


def _tensors(writer: "GGUFWriter", model: "PreTrainedModel", precision: Precision) -> None:
    from gguf import MODEL_ARCH, get_tensor_name_map, quants

    config = model.config
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # a file without it says that it is the embeddings
        called = names.get_name(name, try_suffixes=(".weight",))
        if called is None:
            raise FtaasError("this tensor has no name in GGUF", "model", name, "convert to merged instead")
        array = tensor.float().numpy()
        if name.endswith("q_proj.weight"):
            array = _rotary(array, config.num_attention_heads)
        elif name.endswith("k_proj.weight"):
            array = _rotary(array, config.num_key_value_heads)
        kind = _kind(array, precision)
        writer.add_tensor(called, quants.quantize(array, kind), raw_dtype=kind)


def _rotary(weights: "np.ndarray[Any, Any]", heads: int) -> "np.ndarray[Any, Any]":
    """Rows of Q or K, `[heads * size, hidden]`: from halves of a head, as here, to pairs, as in llama.cpp."""
    rows, columns = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _kind(array: "np.ndarray[Any, Any]", precision: Precision) -> "GGMLQuantizationType":
    from gguf import GGMLQuantizationType as Kind

    if array.ndim < 2 or precision == "fp32":
        return Kind.F32
    return Kind.Q8_0 if precision == "q8_0" and array.shape[-1] % _BLOCK == 0 else Kind.F16


def load(folder: Path) -> "Network":
    """Open a GGUF file by transformers' own reader: weights, tokenizer and template out of the file alone."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ftaas_pipelines.inference import templates
    from ftaas_pipelines.inference.forward import Network

    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    # transformers 5.23 does not know all of llama.cpp's ways to split text, and falls back to GPT-2's.
    pre = str(GGUFReader(folder / FILE).fields["tokenizer.ggml.pre"].contents())
    tokenizer.backend_tokenizer.pre_tokenizer = splitters()[pre]
    return Network(model.eval(), templates.complete(tokenizer, "causal"), "causal")
