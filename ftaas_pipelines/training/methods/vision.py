"""Supervised fine-tuning on conversations that show images, by a vision-language base.

The loss is on the answers alone, labelled as for causal bases. Images are read and prepared batch by
batch: a version's pictures need not fit into memory.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

# Only a stage program loads this module, through run.py.
import torch  # noqa: TID253
from transformers import Trainer, TrainingArguments  # noqa: TID253

from ftaas_pipelines.data.rows.messages import of_row
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.inference import bases
from ftaas_pipelines.inference.pictures import Shown, Viewer, accepted
from ftaas_pipelines.inference.templates import IGNORED, Example
from ftaas_pipelines.projects.method import Vision
from ftaas_pipelines.projects.recipe import Training
from ftaas_pipelines.training import data as examples
from ftaas_pipelines.training import networks, parts
from ftaas_pipelines.training.data import Row, TrainingData
from ftaas_pipelines.training.materials import Materials

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, TrainerCallback

TASK = "CAUSAL_LM"
KEEP: tuple[str, ...] = ()
FIGURES: Mapping[str, str] = {}
IMAGES = "images"  # the column that names the images of an example, in their order


def data(materials: Materials) -> TrainingData:
    """Conversations with loss on their answers; those without an image are learnt from, too.

    Raises:
        InputInvalid: as `training.data.load`; or images cannot be had. It names some records.
    """
    viewer, training = _viewer(materials), materials.inputs.training
    train, validation = examples.both(materials)
    for found, name in ((train, "train.parquet"), (validation, "validation.parquet")):
        examples.check_kinds(found, name, "vision", images=True)
    learnt, kept, cut = _read(viewer, train, "train.parquet", training)
    checked, asked, _ = _read(viewer, validation, "validation.parquet", training)
    return TrainingData(
        _dataset(learnt, kept, viewer),
        _dataset(checked, asked, viewer, learnt=False) if checked else None,
        record_ids=[row["record_id"] for row in kept],
        truncated=cut,
        dropped=len(train) - len(kept),
        prompts=examples.prompts(validation, training.samples),
    )


def network(materials: Materials) -> "PreTrainedModel":
    """The base. Without `train_vision_tower` the tower is frozen, and adapters sit on the language model."""
    model = networks.language_model(materials)
    method = materials.inputs.method
    assert isinstance(method, Vision)
    if not method.train_vision_tower:
        for tower in _towers(model):
            tower.requires_grad_(False)
        parts.only_within(model, model.get_decoder())
    return model


def trainer(
    materials: Materials,
    model: "PreTrainedModel | PeftModel",
    data: TrainingData,
    arguments: dict[str, Any],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """A trainer over examples that are tokenized and labelled already; its collator brings the images."""
    return Trainer(
        model=model,
        args=TrainingArguments(**arguments, prediction_loss_only=True),
        data_collator=_Collator(_viewer(materials), accepted(model)),
        train_dataset=data.train,
        eval_dataset=data.validation,  # pyright: ignore[reportArgumentType] None: no evaluation
        processing_class=materials.tokenizer,
        callbacks=callbacks,
    )


class _Collator:
    """Examples to a batch: tokens and labels padded on the right, and what the network takes of images."""

    def __init__(self, viewer: Viewer, accepted: frozenset[str]):
        self._viewer, self._accepted = viewer, accepted

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        pad = self._viewer.tokenizer.pad_token_id
        assert isinstance(pad, int), "templates.complete() first"
        ids = [list(feature["input_ids"]) for feature in features]
        width = max(map(len, ids))
        batch = {
            "input_ids": _padded(ids, pad, width),
            "attention_mask": _padded([[1] * len(row) for row in ids], 0, width),
            "labels": _padded([list(feature["labels"]) for feature in features], IGNORED, width),
        }
        shown = [_shown(sha256) for feature in features for sha256 in feature[IMAGES]]
        return batch | self._viewer.inputs(shown, batch["input_ids"], self._accepted)


def _padded(rows: list[list[int]], filler: int, width: int) -> torch.Tensor:
    """Rows of different lengths as `[rows, width]`."""
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


def _viewer(materials: Materials) -> Viewer:
    return Viewer(bases.load_processor(materials.base), materials.dataset)


def _towers(model: "PreTrainedModel") -> list["PreTrainedModel"]:
    """The parts that see: networks of the vision configuration."""
    from transformers import PreTrainedModel

    seeing = type(model.config.vision_config)
    return [m for m in model.modules() if isinstance(m, PreTrainedModel) and isinstance(m.config, seeing)]


def _read(
    viewer: Viewer, found: list[Row], where: str, training: Training
) -> tuple[list[Example], list[Row], int]:
    """Examples within `max_seq_tokens`, their records, and how many were cut short."""
    limit = training.max_seq_tokens
    whole = _examples(viewer, found, where)
    long = [len(example.input_ids) > limit for example in whole]
    keep = examples.within(found, long, where, training)
    rows = [found[i] for i in keep]
    made = [viewer.example(of_row(found[i]), limit) if long[i] else whole[i] for i in keep]
    empty = [row["record_id"] for row, e in zip(rows, made, strict=True) if e.supervised == 0]
    examples.check_answered(len(rows), empty, where, limit)
    return made, rows, sum(long[i] for i in keep)


def _examples(viewer: Viewer, found: list[Row], where: str) -> list[Example]:
    """Each record's tokens; every image is read once here, so that none fails on the way."""
    made: list[Example] = []
    failed: dict[str, str] = {}
    for row in found:
        try:
            made.append(viewer.example(of_row(row)))
        except InputInvalid as error:
            failed[row["record_id"]] = str(error)
    if failed:
        raise InputInvalid(
            f"method vision cannot learn from {len(failed)} of {len(found)} records",
            where,
            f"{examples.named(list(failed))}: {next(iter(failed.values()))}",
            "bring the dataset version's images back, or leave these records out",
        )
    return made


def _dataset(
    made: Sequence[Example], rows: Sequence[Row], viewer: Viewer, *, learnt: bool = True
) -> "Dataset":
    shown = [
        [image["sha256"] for image in viewer.within(example.input_ids, of_row(row))]
        for example, row in zip(made, rows, strict=True)
    ]
    return examples.dataset(made, learnt=learnt).add_column(IMAGES, shown)  # type: ignore[arg-type]


def _shown(sha256: str) -> Shown:
    return {"ref": f"images/{sha256}", "sha256": sha256}
