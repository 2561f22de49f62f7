"""Adapters that answer with one of a few labels: a head on the hidden state of the prompt's last token.

The artifact holds `labels.json`, the labels in the order of the head's rows. A low-rank adapter shares the
base's network with all the others; only its head is its own.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch  # noqa: TID253 imported by stage programs and the engine only

from ftaas_pipelines.inference import forward, templates
from ftaas_pipelines.inference.forward import Network

LABELS = "labels.json"
HEAD = "score"
_SURE = 2.0**-52  # least probability of a label in `loss`, as in sklearn.metrics.log_loss


@dataclass(frozen=True)
class Head:
    """The labels of an adapter, and what tells them apart.

    Attributes:
        weight: `[labels, hidden]`.
    """

    labels: list[str]
    weight: torch.Tensor


def labels_of(folder: Path) -> list[str] | None:
    """The labels of an adapter's folder; None where it writes free text."""
    file = folder / LABELS
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def load_whole(folder: Path, labels: list[str]) -> tuple[Network, Head]:
    """A classifier of which every weight was trained."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model: Any = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
    ).eval()
    if torch.cuda.is_available():
        model.to("cuda")
    tokenizer = templates.complete(AutoTokenizer.from_pretrained(folder, local_files_only=True), "causal")
    return Network(model, tokenizer, "causal"), Head(labels, model.score.weight.detach())


def head(base: Network, folder: Path, labels: list[str]) -> Head:
    """The head of a low-rank classifier, on the base's device."""
    from safetensors.torch import load_file

    weights = load_file(folder / "adapter_model.safetensors")
    (score,) = [name for name in weights if name.endswith(f".{HEAD}.weight")]
    return Head(labels, weights[score].float().to(base.model.device))


def load_beside(base: Network, peft: Any, name: str, folder: Path, labels: list[str]) -> tuple[Any, Head]:
    """A low-rank classifier that is no plain LoRA, taken into the base's network.

    Args:
        peft: the base wrapped by PEFT; None: it has no adapter yet.

    Returns:
        The base wrapped by PEFT, and the head.
    """
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    config = cast(LoraConfig, LoraConfig.from_pretrained(str(folder)))
    kept = {*(config.modules_to_save or ())} - {HEAD}
    config.modules_to_save, config.task_type = sorted(kept) or None, "CAUSAL_LM"
    weights = load_file(folder / "adapter_model.safetensors")
    weights = {name: value for name, value in weights.items() if not name.endswith(f".{HEAD}.weight")}
    if peft is None:
        peft = PeftModel(cast(Any, base.model), config, adapter_name=name)
    else:
        peft.add_adapter(name, config)
    set_peft_model_state_dict(peft, weights, adapter_name=name)
    return peft, head(base, folder, labels)


def scores(network: Network, head: Head, prompts: list[list[int]]) -> torch.Tensor:
    """Logits of the labels `[prompts, labels]`, of one batch of token ids."""
    ids, mask = forward.padded(prompts, network, left=True)
    body = network.model.base_model
    extra = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    extra = {name: value for name, value in extra.items() if name in network.accepts}
    hidden = body(input_ids=ids, attention_mask=mask, use_cache=False, **extra).last_hidden_state
    return torch.nn.functional.linear(hidden[:, -1], head.weight).float()


def losses(head: Head, logits: torch.Tensor, wanted: list[str]) -> list[float]:
    """Cross-entropy (nats) of the wanted labels; one that the head does not know has the least probability.

    Args:
        logits: `[prompts, labels]`.
    """
    chances = logits.double().softmax(-1)
    place = {label: i for i, label in enumerate(head.labels)}
    known = [float(chances[row, place[label]]) if label in place else 0.0 for row, label in enumerate(wanted)]
    return (-torch.tensor(known, dtype=torch.float64).clamp(min=_SURE).log()).tolist()
