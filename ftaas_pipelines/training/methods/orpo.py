"""Odds-ratio preference optimisation (Hong et al. 2024), by TRL: SFT and preferences in one pass.

No reference: the loss is the chosen answer's cross-entropy, less beta times the log-sigmoid of the log odds
ratio of chosen over rejected.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

# Only a stage program loads this module, through run.py.
import torch  # noqa: TID253
from torch.nn.utils.rnn import pad_sequence  # noqa: TID253
from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # noqa: TID253

from ftaas_pipelines.inference.templates import IGNORED
from ftaas_pipelines.projects.method import Orpo
from ftaas_pipelines.training import networks
from ftaas_pipelines.training.data import TrainingData
from ftaas_pipelines.training.materials import Materials
from ftaas_pipelines.training.methods import preferences

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, Trainer, TrainerCallback

TASK = "CAUSAL_LM"
KEEP: tuple[str, ...] = ()
FIGURES: Mapping[str, str] = {
    **preferences.FIGURES,
    **preferences.figures({"nll_loss": "answer_loss", "log_odds_chosen": "log_odds_ratio"}),
}


class OddsTrainer(preferences.Prepared, ORPOTrainer):
    """ORPOTrainer over our tokens, whose cross-entropy is over answers alone."""

    @staticmethod
    def tokenize_row(  # pyright: ignore[reportIncompatibleMethodOverride] static: `map` hashes no trainer
        feature: dict[str, Any], model: Any = None
    ) -> dict[str, Any]:
        """The row as it is: it is tokens already."""
        return feature

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> tuple[Any, ...]:
        """As TRL's, but the cross-entropy of the chosen answer leaves its prompt out.

        TRL teaches the prompt too; every other method here teaches answers.

        Returns:
            Mean log-probabilities of the chosen and the rejected answers `[batch]`, logits of both
            `[batch, seq, vocab]`, the cross-entropy, and the experts' loss where the base has experts.
        """
        made: tuple[Any, ...] = super().concatenated_forward(model, batch)
        chosen, taught = made[0], (batch["chosen_labels"][:, 1:] != IGNORED).sum(1)
        return (*made[:4], -(chosen * taught).sum() / taught.sum(), *made[5:])


class Collator:
    """Pairs to one batch: of each side `input_ids`, `attention_mask` and `labels`, padded on the right."""

    def __init__(self, pad: int):
        self._pad = pad

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch: dict[str, torch.Tensor] = {}
        for side in ("chosen", "rejected"):
            rows = [feature["prompt_ids"] + feature[f"{side}_ids"] for feature in features]
            labels = [[IGNORED] * len(f["prompt_ids"]) + f[f"{side}_ids"] for f in features]
            batch[f"{side}_input_ids"] = _padded(rows, self._pad)
            batch[f"{side}_attention_mask"] = _padded([[1] * len(row) for row in rows], 0)
            batch[f"{side}_labels"] = _padded(labels, IGNORED)
        # What the trainer counts its tokens by; the loss takes no notice of it.
        batch["input_ids"] = torch.cat([batch[f"{s}_input_ids"] for s in ("chosen", "rejected")], dim=1)
        return batch


def _padded(rows: list[list[int]], filler: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=filler)


def data(materials: Materials) -> TrainingData:
    """Pairs of answers, chosen and rejected."""
    return preferences.load(materials, preferences.PAIRS, preferences.pairs)


def network(materials: Materials) -> "PreTrainedModel":
    return networks.language_model(materials)


def trainer(
    materials: Materials,
    model: "PreTrainedModel | PeftModel",
    data: TrainingData,
    arguments: dict[str, Any],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """A trainer without a reference model; dropout is the adapter's own."""
    method = materials.inputs.method
    assert isinstance(method, Orpo)
    pad = materials.tokenizer.pad_token_id
    assert isinstance(pad, int), "templates.complete() sets it"
    config = ORPOConfig(
        **arguments,
        beta=method.beta,
        max_length=materials.inputs.training.max_seq_tokens,
        disable_dropout=False,
    )
    made = OddsTrainer(
        model=model,
        args=config,
        data_collator=Collator(pad),
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=materials.tokenizer,
        callbacks=callbacks,
    )
    made.use_dpo_data_collator = True  # ours makes the same batch; without this each evaluation warns
    return made
