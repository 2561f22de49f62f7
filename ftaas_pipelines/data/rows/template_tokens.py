"""Tokens that chat templates are made of. In a row's text they would open or close a turn by themselves.

The list is short on purpose. `<s>` and `<think>` are left out: they are struck-through HTML and
reasoning that a project may want; so is `</s>`.
"""

import re

TOKENS: tuple[str, ...] = (
    # ChatML (Qwen, Yi, SmolLM; phi-4's <|im_sep|>): https://github.com/openai/openai-python chatml.md
    "<|im_start|>", "<|im_end|>", "<|im_sep|>",
    # GPT-2, Falcon, Qwen, Phi: end of a document
    "<|endoftext|>",
    # Llama 3 and 4: https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3/
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<|eom_id|>", "<|python_tag|>", "<|header_start|>", "<|header_end|>", "<|eot|>", "<|eom|>",
    # Llama 2 and Mistral; `<s>[INST]` is found by its second half
    "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>",
    # Gemma: https://ai.google.dev/gemma/docs/core/prompt-structure
    "<start_of_turn>", "<end_of_turn>",
    # Phi-3, Zephyr, GLM-4 and the embedded bases of this platform
    "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|observation|>", "<|end|>",
    # gpt-oss (harmony): https://github.com/openai/harmony
    "<|start|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>",
    # Command R: https://docs.cohere.com/docs/command-r-hf
    "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    # Granite
    "<|start_of_role|>", "<|end_of_role|>",
    # DeepSeek writes U+FF5C and U+2581
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>",
)  # fmt: skip
_ANY = re.compile("|".join(map(re.escape, TOKENS)).encode())


def find(data: bytes) -> str | None:
    """The first template token in UTF-8 text or JSON, if any."""
    if b"<" not in data and b"INST]" not in data:  # nearly every record stops here
        return None
    found = _ANY.search(data)
    return found[0].decode() if found else None
