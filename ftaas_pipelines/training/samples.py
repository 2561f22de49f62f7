"""What the model answers while it learns: a few validation prompts at each evaluation."""

import time
from collections.abc import Sequence
from typing import Any

# Only a stage program loads this module, through run.py.
from transformers import (  # noqa: TID253
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ftaas_pipelines.inference import bases, pictures, templates
from ftaas_pipelines.training.callbacks import Report
from ftaas_pipelines.training.materials import Materials

NEW_TOKENS = 48
_REHEARSED = 6  # tokens that tell how long one takes


class Samples(TrainerCallback):
    """Answers validation prompts greedily at each evaluation: it draws no random number and changes nothing.

    Attributes:
        said: step, prompt, reference and answer of each.
    """

    def __init__(
        self, materials: Materials, prompts: Sequence[tuple[list[dict[str, Any]], str]], report: Report
    ):
        self._materials, self._prompts, self._report = materials, prompts, report
        self._viewer: pictures.Viewer | None = None
        if materials.inputs.family == "vision" and prompts:
            self._viewer = pictures.Viewer(bases.load_processor(materials.base), materials.dataset)
        self.said: list[dict[str, Any]] = []

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        answers = self._answers(model)
        now = [
            {
                "step": state.global_step,
                "prompt": templates.source_text(prompt),
                "reference": reference,
                "answer": answer,
            }
            for (prompt, reference), answer in zip(self._prompts, answers, strict=True)
        ]
        self.said += now
        self._report.samples(state.global_step, now)

    def rehearse(self, model: Any) -> float:
        """Seconds that one round of answers will take, from the first tokens of one of them."""
        tokenizer = self._materials.tokenizer
        wanted = [
            min(NEW_TOKENS, len(tokenizer(reference)["input_ids"]) + 1) for _, reference in self._prompts
        ]
        began = time.perf_counter()
        self._answer(model, self._prompts[0][0], max_new_tokens=_REHEARSED, min_new_tokens=_REHEARSED)
        return (time.perf_counter() - began) / _REHEARSED * sum(wanted)

    def _answers(self, model: Any) -> list[str]:
        was_training = model.training
        model.eval()
        answers = [self._answer(model, prompt, max_new_tokens=NEW_TOKENS) for prompt, _ in self._prompts]
        model.train(was_training)
        return answers

    def _answer(self, model: Any, prompt: list[dict[str, Any]], **length: int) -> str:
        import torch

        tokenizer, family = self._materials.tokenizer, self._materials.inputs.family
        with torch.inference_mode():
            ids, seen = self._shown(prompt, model)
            made = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **seen,
                **length,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )[0]
        start = 1 if family == "seq2seq" else ids.shape[1]
        return str(tokenizer.decode(made[start:], skip_special_tokens=True))

    def _shown(self, prompt: list[dict[str, Any]], model: Any) -> tuple[Any, dict[str, Any]]:
        """The prompt's tokens `[1, n]`, and what the network is given of its images."""
        import torch

        tokenizer, family, viewer = self._materials.tokenizer, self._materials.inputs.family, self._viewer
        if viewer is None:
            found = templates.prompt_ids(tokenizer, prompt, family)
            return torch.tensor([found], device=model.device), {}
        ids = torch.tensor([viewer.prompt_ids(prompt)], device=model.device)
        return ids, viewer.inputs(pictures.of(prompt), ids, pictures.accepted(model))
