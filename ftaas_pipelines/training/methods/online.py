"""What the methods share that learn from answers sampled on the way: prompts, seeds, rewards, figures.

A prompt reaches TRL as the token ids that `inference.templates` gives, so that training, evaluation and
serving ask in one form. Answers are sampled once an optimizer step, and all that is random in a step is drawn
from the seed and the step's number; so a resumed training needs nothing of what was in memory.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

# Only a stage program loads this module, through run.py.
import torch  # noqa: TID253
from torch.utils.data import Sampler, SequentialSampler  # noqa: TID253
from transformers import GenerationConfig, set_seed  # noqa: TID253

from ftaas_pipelines.data.rows.messages import of_row
from ftaas_pipelines.errors import InputInvalid, Problem
from ftaas_pipelines.inference import templates
from ftaas_pipelines.metrics.graders import Panel
from ftaas_pipelines.projects.method import Grpo, Rloo
from ftaas_pipelines.projects.reward import NEEDS_EXPECTED
from ftaas_pipelines.training import data as examples
from ftaas_pipelines.training.data import ROW, Row, TrainingData
from ftaas_pipelines.training.materials import Materials

if TYPE_CHECKING:
    from datasets import Dataset

FIGURES: Mapping[str, str] = {
    "reward": "reward",
    "eval_reward": "eval_reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "groups_alike",
    "kl": "kl",
    "entropy": "entropy",
    "completions/mean_length": "answer_tokens",
    "eval_completions/mean_length": "eval_answer_tokens",
    "ended": "ended",
    "eval_ended": "eval_ended",
}


def data(materials: Materials) -> TrainingData:
    """Prompts with what is checkable about their answers.

    Of a record of kind `prompt` that is its expected answer, of any other its answer. A prompt that leaves no
    room for `max_new_tokens` within `max_seq_tokens` is left out, or refused where the recipe says so: cut
    short it would ask something else.

    Raises:
        InputInvalid: no record is left, or some are of a kind that has no prompt or no right answer.
    """
    inputs = materials.inputs
    method = inputs.method
    assert isinstance(method, Grpo | Rloo)
    compared = any(isinstance(grader, NEEDS_EXPECTED) for grader in method.rewards)
    train, validation = examples.both(materials)
    made: list[tuple[Dataset | None, list[Row]]] = []
    for found, where in ((train, "train.parquet"), (validation, "validation.parquet")):
        check(found, where, inputs.method.kind, inputs.family, compared)
        ids = [templates.prompt_ids(materials.tokenizer, of_row(row)[:-1], "causal") for row in found]
        kept = fitting(found, ids, where, materials, method.max_new_tokens)
        made.append((_dataset(kept, learnt=found is train), [row for row, _ in kept]))
    (learnt, kept), (checked, _) = made
    if learnt is None:
        raise InputInvalid("there is no prompt to learn from", "train.parquet", do="add records")
    return TrainingData(
        learnt,
        checked,
        record_ids=[row["record_id"] for row in kept],
        dropped=len(train) - len(kept),
        prompts=examples.prompts(validation, inputs.training.samples),
    )


def check(found: Sequence[Row], where: str, method: str, family: str, compared: bool) -> None:
    """Refuse what cannot be asked, and what would be compared with a wrong answer.

    Args:
        compared: whether answers are held against the record's own.
    """
    if family != "causal":
        raise InputInvalid(
            f"method {method} samples answers of a causal base", "base_model", family, "choose a causal base"
        )
    meant: dict[str, list[str]] = {}
    for row in found:
        extra = json.loads(row.get("extra") or "{}")
        if row["kind"] == "text":
            meant.setdefault("no prompt: they are plain text", []).append(row["record_id"])
        if compared and extra.get("label") is False:
            meant.setdefault("an answer that is labelled bad, and is compared with", []).append(
                row["record_id"]
            )
        if "tools" in extra or '"tool_calls":[' in (row["messages"] or ""):
            meant.setdefault("tools, which the chat template does not render", []).append(row["record_id"])
        if '"images":[' in (row["messages"] or ""):
            meant.setdefault("images, which the base model does not see", []).append(row["record_id"])
    if meant:
        raise InputInvalid(
            [
                Problem(
                    f"method {method} cannot learn from {len(ids)} of {len(found)} records: they have {what}",
                    where,
                    examples.named(ids),
                    "leave them out, or choose another method",
                )
                for what, ids in meant.items()
            ]
        )


def fitting(
    found: Sequence[Row], prompts: Sequence[list[int]], where: str, materials: Materials, max_new_tokens: int
) -> list[tuple[Row, list[int]]]:
    """The records whose prompt leaves room for an answer, each with its prompt.

    Raises:
        InputInvalid: one does not and the recipe refuses such, or none does.
    """
    training = materials.inputs.training
    limit = training.max_seq_tokens - max_new_tokens
    room = f"{limit} tokens (max_seq_tokens={training.max_seq_tokens} less max_new_tokens={max_new_tokens})"
    kept = [(row, ids) for row, ids in zip(found, prompts, strict=True) if len(ids) <= limit]
    long = [row["record_id"] for row, ids in zip(found, prompts, strict=True) if len(ids) > limit]
    if long and (training.too_long == "refuse" or not kept):
        raise InputInvalid(
            f"{len(long)} of {len(found)} prompts are longer than {room}",
            where,
            examples.named(long),
            "raise training.max_seq_tokens, or lower method.max_new_tokens",
        )
    return kept


def _dataset(kept: Sequence[tuple[Row, list[int]]], *, learnt: bool) -> "Dataset | None":
    from datasets import Dataset

    if not kept:
        return None
    rows = [row for row, _ in kept]
    return Dataset.from_dict(
        {
            "prompt": [ids for _, ids in kept],
            "question": [row["prompt"] for row in rows],
            "expected": [_expected(row) for row in rows],
            "record_id": [row["record_id"] for row in rows],
            ROW: list(range(len(rows))) if learnt else [-1] * len(rows),
        }
    )


def _expected(row: Row) -> str:
    expected = json.loads(row.get("extra") or "{}").get("expected")
    return row["answer"] if expected is None else str(expected)


def arguments(shared: dict[str, Any]) -> dict[str, Any]:
    """The arguments that all methods share, as these trainers take them."""
    return {**shared, "include_num_input_tokens_seen": "no"}  # they count themselves, prompts and answers


class Part:
    """One grader as TRL calls a reward; its name is the figure's."""

    def __init__(self, panel: Panel, number: int):
        self._panel, self._number = panel, number
        self.__name__ = panel.names[number]

    def __call__(
        self,
        completions: list[str],
        question: list[str],
        expected: list[str],
        record_id: list[str],
        **_: Any,
    ) -> list[float]:
        return self._panel.part(self._number, question, completions, expected, record_id)


class Steps(Sampler[int]):
    """The rows of every optimizer step, laid out ahead as one epoch.

    TRL's own sampler draws each epoch's order from a generator whose state no checkpoint holds: a training
    resumed in its second epoch would see the first one's again. Here the order follows from the seed alone.

    Args:
        rows: of the dataset.
        prompts: different rows of a step, over all processes.
        repeats: times each of them comes in a row, one an answer.
        passes: times a step's rows come again: TRL reads them once a forward pass, and uses them once.
        steps: optimizer steps of the whole training.
    """

    def __init__(self, rows: int, prompts: int, repeats: int, passes: int, steps: int, seed: int):
        self._rows, self._prompts, self._repeats = rows, prompts, repeats
        self._passes, self._steps, self._seed = passes, steps, seed

    def __len__(self) -> int:
        return self._steps * self._passes * self._prompts * self._repeats

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        for _ in range(self._steps):
            chosen = [next(order) for _ in range(self._prompts)]
            step = [row for row in chosen for _ in range(self._repeats)]
            yield from step * self._passes

    def _order(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            yield from torch.randperm(self._rows, generator=generator).tolist()


class Online:
    """What is ours in TRL's online trainers; stands before one of them among a class's bases."""

    args: Any
    state: Any
    model: Any
    train_dataset: Any
    accelerator: Any
    generation_config: Any
    eos_token_ids: Any
    _metrics: dict[str, dict[str, list[float]]]
    repeats = 1  # answers to each prompt

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: it would look for the base on the Hub."""
        return None

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        args = self.args
        passes = args.gradient_accumulation_steps
        answers = args.per_device_train_batch_size * passes * self.accelerator.num_processes
        rows = len(self.train_dataset if dataset is None else dataset)
        return Steps(rows, answers // self.repeats, self.repeats, passes, args.max_steps, args.seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int]:
        return SequentialSampler(eval_dataset)

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.model.training:
            set_seed(self.drawn(f"answers of process {self.accelerator.process_index}"))
        return super()._generate_and_score_completions(inputs)  # type: ignore[misc]

    def drawn(self, what: str) -> int:
        """A number below 2**32 for one use in this optimizer step."""
        text = f"{self.args.seed}/{self.state.global_step}/{what}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        """Sampled while training; greedy on validation, as answers are when served."""
        sampling = self.generation_config
        if not self.model.training:
            self.generation_config = GenerationConfig(
                max_new_tokens=sampling.max_new_tokens,
                do_sample=False,
                pad_token_id=sampling.pad_token_id,
                eos_token_id=self.eos_token_ids,
                disable_compile=True,
            )
        try:
            return super()._generate_single_turn(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.generation_config = sampling

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the share of answers that ended, and each grader's part; what is no number is left out."""
        figures = self._metrics["train" if self.model.training else "eval"]
        for name in list(figures):
            figures[name] = [value for value in figures[name] if math.isfinite(value)]
            if not figures[name]:
                del figures[name]
            elif name == "completions/clipped_ratio":
                figures["ended"] = [1 - value for value in figures[name]]
            elif name.startswith("rewards/") and name.endswith("/mean"):
                figures[f"reward_{name.split('/')[1]}"] = figures[name]
        super().log(logs, start_time)  # type: ignore[misc]


class Rewarded(Online):
    """The trainers whose answers are rewarded."""

    ref_model: Any

    def begin(self, generations: int) -> None:
        """Say how many answers each prompt gets, and make the reference what the training starts from.

        For an adapter TRL copies it. For a model that is trained whole it reads the base's folder again: so
        it would miss an adapter that was merged in.
        """
        self.repeats = generations
        if self.ref_model is not None:
            self.accelerator.unwrap_model(self.ref_model).load_state_dict(self.model.state_dict())

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, None, None]:
        """Validation loss is the mean reward of greedy answers, with its sign turned: less is better.

        The loss that TRL minimises says nothing: its value is near zero whatever the answers are worth.
        """
        with torch.no_grad():
            self._prepare_inputs(inputs)  # type: ignore[attr-defined]
        reward = self._metrics["eval"]["reward"][-1]
        return torch.tensor(-reward, device=self.accelerator.device), None, None
