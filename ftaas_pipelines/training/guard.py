"""Which records a step learnt from, and whether its loss is a number: what ruins a training is named."""

import contextlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.training.data import ROW, named

if TYPE_CHECKING:
    from transformers import Trainer

_KEPT = 4096  # batches whose rows are remembered


class Guard:
    """Wraps a trainer's collator and loss.

    On a CPU every forward pass is checked. On a GPU asking would stop the pipeline at each pass: the number
    of the first bad pass stays on the device, and is read where the trainer waits for it anyway.
    """

    def __init__(self, trainer: "Trainer", record_ids: Sequence[str]):
        self._trainer, self._record_ids = trainer, record_ids
        self._rows: deque[list[int]] = deque(maxlen=_KEPT)
        self._collated = self._passes = 0
        self._bad: Any = None  # tensor: number of the first pass whose loss is no number, -1 for none
        self._loss: Any = None
        self._collate: Any = trainer.data_collator
        self._compute: Any = trainer.compute_loss
        trainer.data_collator = self._collating  # type: ignore[assignment]
        trainer.compute_loss = self._computing  # type: ignore[method-assign]

    def _collating(self, features: list[dict[str, Any]]) -> Any:
        rows = [row if isinstance(row := feature.get(ROW, ()), list) else [row] for feature in features]
        learnt = sorted({row for one in rows for row in one if row != () and row >= 0})
        if learnt:  # validation rows are all -1
            self._rows.append(learnt)
            self._collated += 1
        return self._plain(features)

    def _plain(self, features: list[dict[str, Any]]) -> Any:
        return self._collate([{k: v for k, v in feature.items() if k != ROW} for feature in features])

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Passes in here are none of the training: nothing is remembered of them."""
        self._trainer.data_collator = self._plain  # type: ignore[assignment]
        self._trainer.compute_loss = self._compute  # type: ignore[method-assign]
        try:
            yield
        finally:
            self._trainer.data_collator = self._collating  # type: ignore[assignment]
            self._trainer.compute_loss = self._computing  # type: ignore[method-assign]

    def _computing(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        out = self._compute(model, inputs, *args, **kwargs)
        if model.training:
            self._look(out[0] if isinstance(out, tuple) else out)
        return out

    def _look(self, loss: Any) -> None:
        import torch

        loss = loss.detach()
        if loss.device.type == "cpu":
            if not math.isfinite(float(loss)):
                raise self._diverged(self._passes, float(loss))
        else:
            if self._bad is None:
                self._bad = torch.full((), -1, device=loss.device)
            bad = (~torch.isfinite(loss.mean())) & (self._bad < 0)
            self._bad = torch.where(bad, self._passes, self._bad)
        self._passes += 1

    def check(self) -> None:
        """Before anything is logged or saved.

        Raises:
            FtaasError: a loss was no number.
        """
        if self._bad is not None and (first := int(self._bad)) >= 0:
            raise self._diverged(first, math.nan)

    def _diverged(self, passed: int, loss: float) -> FtaasError:
        per_step = self._trainer.args.gradient_accumulation_steps
        step = self._trainer.state.global_step + 1
        place = passed - self._collated + len(self._rows)
        rows = self._rows[place] if 0 <= place < len(self._rows) else []
        ids = [self._record_ids[row] for row in rows if row < len(self._record_ids)]
        where = (
            f"step {step}" if per_step == 1 else f"step {step}, pass {passed % per_step + 1} of {per_step}"
        )
        return FtaasError(
            "the training diverged: its loss is no longer a number",
            where,
            f"{loss} on {named(ids)}" if ids else str(loss),
            "the last good checkpoint is kept; look at these records, lower training.learning_rate, or add "
            "warmup_steps",
        )
