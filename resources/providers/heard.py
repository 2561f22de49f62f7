"""Where everything goes that a provider says: the messages that `ftaas` shows, the log, Dagster, MLflow.

No secret passes through here: each text is looked through for the values of the order's secrets.
"""

import json
import math
import time
from collections.abc import Sequence
from typing import Any, TextIO

from ftaas_pipelines.data.sources import secrets
from ftaas_pipelines.errors import FtaasError, Problem
from resources.launch_contract import Context, Listener
from resources.providers.job import News


class Heard:
    """Forwards reports in the shape that stages give them. `history` is the metrics, a row a step."""

    def __init__(self, context: Context, log: TextIO, messages: TextIO, listener: Listener | None):
        self._context, self._log, self._messages, self._listener = context, log, messages, listener
        self._rows: dict[int, dict[str, Any]] = {}
        self.hidden: Sequence[str] = ()
        self.share = 0.0

    @property
    def history(self) -> list[dict[str, Any]]:
        return [{"step": step, **values} for step, values in sorted(self._rows.items())]

    def progress(self, done: float, message: str) -> None:
        self.share, shown = done, secrets.hide(message, *self.hidden)
        self._send({"type": "progress", "done": round(done, 4), "message": shown})
        self._write(shown)

    def told(self, text: str) -> None:
        """Something for people."""
        shown = secrets.hide(text, *self.hidden)
        self._write(shown)
        self._context.log.info(shown)

    def news(self, news: Sequence[News]) -> None:
        for one in news:
            if one.values:
                self._metrics(one.step, one.values)
            if one.raw:
                self._write(one.text)
            elif one.text:
                self.told(one.text)
            if one.share is not None:  # the last part is bringing the result home
                self.progress(
                    max(self.share, 0.1 + 0.8 * min(one.share, 1.0)), one.text or f"step {one.step}"
                )

    def _metrics(self, step: int, values: dict[str, float]) -> None:
        numbers = {name: value for name, value in values.items() if math.isfinite(value)}
        for name in values.keys() - numbers.keys():
            self.told(f"step {step}: {name} is {values[name]}")
        self._rows.setdefault(step, {}).update(numbers)
        self._send({"type": "metrics", "step": step, "values": numbers})
        if self._listener:
            self._listener.metrics(step, numbers)

    def figures(self, rows: Sequence[dict[str, Any]]) -> None:
        """Figures that came with the result and were not told before."""
        for row in rows:
            values = {k: float(v) for k, v in row.items() if k != "step" and isinstance(v, int | float)}
            fresh = {k: v for k, v in values.items() if self._rows.get(row["step"], {}).get(k) != v}
            if fresh:
                self._metrics(row["step"], fresh)

    def error(self, error: FtaasError) -> FtaasError:
        """Report an error; returns it, its secrets blotted out."""
        error.problems = [
            Problem(*(secrets.hide(text, *self.hidden) for text in (p.what, p.where, p.got, p.do)))
            for p in error.problems
        ]
        error.args = ("\n".join(str(p) for p in error.problems),)
        self._send({"type": "error", **error.as_dict()})
        self._write(str(error))
        return error

    def result(self, kind: str, digest: str, reused: bool) -> None:
        self._send({"type": "result", "kind": kind, "digest": digest, "reused": reused})

    def _send(self, message: dict[str, Any]) -> None:
        self._messages.write(json.dumps({**message, "at": time.time()}) + "\n")
        self._messages.flush()

    def _write(self, text: str) -> None:
        self._log.write(secrets.hide(text, *self.hidden) + "\n")
        self._log.flush()
