"""What a SageMaker job prints, as CloudWatch keeps it: this platform's program reports in JSON lines."""

import json
from typing import Any

from ftaas_pipelines.errors import FtaasError
from resources.providers.aws import Account, not_found
from resources.providers.job import News, Unreachable

_GROUP = "/aws/sagemaker/TrainingJobs"


class JobLogs:
    """Reads on from where it was; `step` is the last that was reported."""

    def __init__(self, account: Account):
        self._client = account.client("logs")
        self._account = account
        self._from_ms = 0
        self._off = False
        self.step = 0

    def news(self, job: str) -> list[News]:
        """The lines of a job that are new, some perhaps again; none where they may not be read."""
        if self._off:
            return []
        try:
            return [self._told(event) for event in self._events(job)]
        except Unreachable:
            return []  # the job itself is what counts; the next look reads them
        except FtaasError as error:
            if not_found(error):  # nothing is printed yet
                return []
            self._off = True
            why = error.problems[0].got
            return [News("no logs", f"its log cannot be read, so its figures come at the end ({why})")]

    def _events(self, job: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        asked: dict[str, Any] = {
            "logGroupName": _GROUP,
            "logStreamNamePrefix": f"{job}/",
            "startTime": self._from_ms,
        }
        with self._account.explained():
            for page in self._client.get_paginator("filter_log_events").paginate(**asked):
                found += page["events"]
        self._from_ms = max([self._from_ms, *(event["timestamp"] for event in found)])
        return found

    def _told(self, event: dict[str, Any]) -> News:
        key, line = f"log {event['eventId']}", event["message"].rstrip()
        try:
            said = json.loads(line)
            kind = said["type"]
        except (ValueError, TypeError, KeyError):
            return News(key, line, raw=True)
        if kind == "metrics":
            self.step = max(self.step, int(said["step"]))
            return News(key, step=int(said["step"]), values=said["values"])
        if kind == "progress":
            return News(key, said["message"], share=float(said["done"]))
        return News(key, line, raw=True)
