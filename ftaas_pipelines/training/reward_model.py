"""A reward model at work: conversations, texts or tokens to scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Only stage programs load this module.
import torch  # noqa: TID253
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase  # noqa: TID253

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.inference import bases
from ftaas_pipelines.training.methods import preferences

_TOGETHER = 32  # answers read in one pass


class RewardModel:
    """What a recipe of method `reward` learnt: the higher the score, the better the answer.

    Scores compare answers to one prompt; their zero and their scale mean nothing (unless the recipe set
    `center_coefficient`, then zero is the middle).
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase):
        self._model, self._tokenizer = model, tokenizer

    def __call__(self, answered: Sequence[Sequence[dict[str, Any]] | str]) -> list[float]:
        """The score of each.

        Args:
            answered: conversations that end with the answer to be scored, read through the chat template as
                in training; or texts, whose template is written in already.
        """
        return self.scores([self._ids(one) for one in answered])

    def scores(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """The score of each row of token ids: a prompt and its answer, with the end token where it ended."""
        pad: Any = self._tokenizer.pad_token_id
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        out = [0.0] * len(rows)
        for start in range(0, len(order), _TOGETHER):
            places = order[start : start + _TOGETHER]
            width = len(rows[places[0]])
            ids = torch.tensor([[*rows[i], *[pad] * (width - len(rows[i]))] for i in places])
            mask = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in places])
            device = self._model.device
            with torch.inference_mode():
                logits = self._model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
            for i, score in zip(places, logits[:, 0].float().tolist(), strict=True):
                out[i] = score
        return out

    def _ids(self, one: Sequence[dict[str, Any]] | str) -> list[int]:
        if isinstance(one, str):
            return list(self._tokenizer(one, add_special_tokens=False)["input_ids"])
        prompt, answer = preferences.tokens(self._tokenizer, one[:-1], str(one[-1]["content"]))
        return prompt + answer


def load(base: Path, folder: Path, device: Any = "cpu") -> RewardModel:
    """A reward model, ready to score: frozen, in fp32, without dropout.

    Args:
        base: folder of the base model it was learnt on; its tokenizer reads the answers.
        folder: of the adapter artifact that a recipe of method `reward` made, LoRA or whole.
        device: where it computes.

    Raises:
        InputInvalid: the folder holds no reward model.
    """
    beside = (folder / "adapter_config.json").is_file()
    model: Any = bases.load_model(
        base if beside else folder, kind=AutoModelForSequenceClassification, num_labels=1
    )
    if beside:
        from peft import PeftConfig, PeftModel

        config = PeftConfig.from_pretrained(str(folder))
        if "score" not in (getattr(config, "modules_to_save", None) or ()):
            raise InputInvalid(
                "the adapter has no head that scores answers",
                "recipes.method.reward_model",
                do="name a recipe of method reward",
            )
        model = PeftModel.from_pretrained(model, str(folder))
    tokenizer = bases.load_tokenizer(base)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # the last of the others is scored
    return RewardModel(model.eval().requires_grad_(False).to(device), tokenizer)
