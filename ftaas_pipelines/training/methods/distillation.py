"""Distillation, by TRL: a student takes on a teacher's next-token distributions.

TRL trains on the student's own answers alone. Here `on_policy` says which share of the steps does; the others
learn on the answers of the training split (Agarwal et al. 2024, where the share is called lambda).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

# Only a stage program loads this module, through run.py.
from trl import DistillationConfig, DistillationTrainer  # noqa: TID253

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.inference import bases
from ftaas_pipelines.inference.templates import IGNORED
from ftaas_pipelines.projects.method import Distillation
from ftaas_pipelines.training import data as examples
from ftaas_pipelines.training import networks
from ftaas_pipelines.training.data import ROW, TrainingData
from ftaas_pipelines.training.materials import Materials
from ftaas_pipelines.training.methods import online

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

TASK = "CAUSAL_LM"
KEEP: tuple[str, ...] = ()
FIGURES: Mapping[str, str] = online.FIGURES


class StudentTrainer(online.Online, DistillationTrainer):
    """DistillationTrainer with our prompts, order and seeds, on given answers or on the student's own.

    Attributes:
        on_policy: share of the steps that learn on the student's own answers.
    """

    on_policy = 0.0
    _answers: list[list[int]]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._answers = [one["answer"] for one in inputs]
        return super()._generate_and_score_completions(inputs)

    def _generate(self, prompts: list[list[int]]) -> Any:
        """The student's answers, or the given ones: always on validation, so that its loss compares."""
        if self.model.training and self.drawn("whose answers") < self.on_policy * 2**32:
            return super()._generate(prompts)
        if self.model.training:
            self.state.num_input_tokens_seen += sum(map(len, prompts)) + sum(map(len, self._answers))
        return prompts, self._answers, None, None, []


def data(materials: Materials) -> TrainingData:
    """Conversations up to their last answer, and that answer with its end token, cut at `max_seq_tokens`.

    A plain text is asked for by its first token.

    Raises:
        InputInvalid: as `data.load`.
    """
    if materials.inputs.family != "causal":
        family = materials.inputs.family
        raise InputInvalid("distillation needs a causal base", "base_model", family, "choose a causal base")
    found = examples.load(materials)
    return replace(
        found, train=_parted(found.train), validation=found.validation and _parted(found.validation)
    )


def _parted(learnt: "Dataset") -> "Dataset":
    """Token ids with labels as `prompt` and `answer`."""
    from datasets import Dataset

    parts = [
        _last_answer(ids, labels) for ids, labels in zip(learnt["input_ids"], learnt["labels"], strict=True)
    ]
    prompts, answers = zip(*parts, strict=True)
    return Dataset.from_dict({"prompt": list(prompts), "answer": list(answers), ROW: list(learnt[ROW])})


def _last_answer(ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
    end = max(place for place, label in enumerate(labels) if label != IGNORED) + 1
    start = end
    while start > 1 and labels[start - 1] != IGNORED:
        start -= 1
    return ids[:start], ids[start:end]


def network(materials: Materials) -> "PreTrainedModel":
    return networks.language_model(materials)


def teacher(materials: Materials) -> "PreTrainedModel":
    """The teacher, frozen, with what a recipe of this project made of it.

    Raises:
        InputInvalid: its tokens are not the student's.
    """
    assert materials.teacher, "the stage fetches it"
    _check_tokens(materials.tokenizer, bases.load_tokenizer(materials.teacher))
    folder, adapter = materials.teacher, materials.teacher_adapter
    if adapter and not (adapter / "adapter_config.json").is_file():
        folder, adapter = adapter, None  # it was trained whole
    model: Any = bases.load_model(folder, "bf16" if materials.inputs.training.precision == "bf16" else "fp32")
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model.eval().requires_grad_(False)


def _check_tokens(student: "PreTrainedTokenizerBase", teacher: "PreTrainedTokenizerBase") -> None:
    """Distributions are compared token by token: token 17 must be the same text for both."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs and student.eos_token_id == teacher.eos_token_id:
        return
    other = sum(theirs.get(token) != number for token, number in ours.items())
    got = f"{len(theirs)} tokens, not {len(ours)}; {other} of the student's are another or none"
    raise InputInvalid(
        "the teacher has a tokenizer that does not fit the student's: a distribution needs the same tokens",
        "recipes.method.teacher",
        got if ours != theirs else f"end token {teacher.eos_token}, not {student.eos_token}",
        "choose a teacher of the same family, or generate answers with it and learn them by sft",
    )


def _fit_head(teacher: "PreTrainedModel", tokens: int, wanted: int) -> None:
    """Cut the rows off a teacher's head that stand for no token: larger models are often padded further.

    Args:
        tokens: of the tokenizer.
        wanted: rows of the student's head.

    Raises:
        InputInvalid: the student's head has rows that the teacher's has not.
    """
    rows = teacher.config.get_text_config().vocab_size
    if rows == wanted:
        return
    if not tokens <= wanted < rows:
        raise InputInvalid(
            "the teacher's head is narrower than the student's",
            "recipes.method.teacher",
            f"{rows} rows, not {wanted}",
            "choose another teacher",
        )
    teacher.resize_token_embeddings(wanted)


def trainer(
    materials: Materials,
    model: "PreTrainedModel | PeftModel",
    data: TrainingData,
    arguments: dict[str, Any],
    callbacks: "list[TrainerCallback]",
) -> "StudentTrainer":
    """A trainer over prompts and answers; the loss is the divergence between student and teacher.

    Dropout is off: it is the student itself that is compared, and that answers.
    """
    method = materials.inputs.method
    assert isinstance(method, Distillation)
    taught = teacher(materials)
    _fit_head(taught, len(materials.tokenizer), model.config.get_text_config().vocab_size)
    config = DistillationConfig(
        **online.arguments(arguments),
        beta=method.divergence,
        temperature=method.temperature,
        max_completion_length=method.max_new_tokens,
        disable_dropout=True,
    )
    made = StudentTrainer(
        model=model,
        teacher_model=taught,
        args=config,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=materials.tokenizer,
        callbacks=callbacks,
    )
    made.on_policy = method.on_policy
    return made
