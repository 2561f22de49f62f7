"""`python -m ftaas_pipelines.serving.rollout.watch --environment ENV`: judges what serves there, and acts.

A process beside the supervisor, which starts it where a project has a rule: reading the log takes pyarrow
and time, and neither is for the process that answers. It ends with its supervisor.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ftaas_pipelines import settings as all_settings
from ftaas_pipelines.errors import FtaasError, Refused
from ftaas_pipelines.governance.ledger import Ledger, open_ledger
from ftaas_pipelines.serving.desired import Folder, Wanted
from ftaas_pipelines.serving.rollout import acting, judging, windows
from ftaas_pipelines.serving.rollout.judging import Verdict
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import now

STATE = "rollout.json"
"""What the rules said last, in the environment's folder: for `ftaas deployment list`."""
_SHARE = 0.1  # of one core, at most: a tick that took long is followed by a longer rest


@dataclass
class Watch:
    """Looks at every project of an environment that has a rule."""

    settings: Settings
    folder: Folder
    clock: Callable[[], float] = time.time
    _told: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    _opened: Ledger | None = None
    _unsure: bool = True  # whether all that was done is written down

    @property
    def ledger(self) -> Ledger:
        """Opened again where the platform policy changed: its entries name the policy that held."""
        policy = acting.current_policy(self.settings.policy)
        if self._opened is None or self._opened.policy != policy:
            self._opened = open_ledger(self.settings, policy)
        return self._opened

    @property
    def over(self) -> bool:
        """Whether no project has a rule, and all that was done is written down."""
        return not self._unsure and not any(w.ruled for w in self.folder.desired().projects.values())

    def tick(self) -> None:
        """Judge each project once and act; one that goes wrong never silences the others."""
        told: dict[str, dict[str, Any]] = {}
        if self._unsure:
            self._catch_up()
        for project, wanted in sorted(self.folder.desired().projects.items()):
            if not judging.watched(wanted):
                continue
            try:
                said = self._look(project, wanted)
            except Exception as error:  # whatever is wrong with one, the others are judged
                said = {"action": "", "reason": f"cannot be judged: {type(error).__name__}: {error}"}
            told[project] = said
            if _loud(said) and _words(said) != _words(self._told.get(project, {})):
                _say(f"{project}: {_words(said)}")
        if told != self._told:
            self.folder.write(STATE, {"projects": told})
            self._told = told

    def _look(self, project: str, wanted: Wanted) -> dict[str, Any]:
        at = self.clock()
        traffic = windows.none()
        if not judging.settled(wanted, at):
            traffic = windows.read(self.folder.answers, project, judging.begins(wanted, at))
        verdict = judging.judge(wanted, traffic, at)
        said = {"action": verdict.action, "reason": verdict.reason, "release": verdict.subject}
        return {**said, **self._act(wanted, verdict)} if verdict.action else said

    def _act(self, wanted: Wanted, verdict: Verdict) -> dict[str, Any]:
        """Do it, or say why not. What was refused is tried again when the ledger has news of the project."""
        environment, project = self.folder.environment, wanted.release.project
        try:
            if why := acting.refused_before(self.ledger, environment, verdict, wanted):
                return {"refused": why}
            decided = acting.act(self.settings, environment, self.ledger, wanted, verdict)
        except FtaasError as error:
            if self._stands(project) != wanted:
                return {"refused": "somebody changed it meanwhile"}
            return {"refused": self._refused(wanted, verdict, error)}
        self._unsure = True
        said = acting.finish(self.ledger, decided, self._stands(project))
        self._unsure = False
        return {"did": said, "at": now()}

    def _refused(self, wanted: Wanted, verdict: Verdict, error: FtaasError) -> str:
        lease = acting.lease(self.folder.environment, wanted.release.project)
        if any(problem.where == lease for problem in error.problems):
            return "somebody deploys it just now"
        if not isinstance(error, Refused) and self.folder.supervisor() is None:
            return "the supervisor ended meanwhile"
        try:
            acting.note_refusal(self.ledger, self.folder.environment, verdict, wanted, error)
        except FtaasError as down:
            return f"nothing is done while the ledger cannot be asked: {down}"
        return str(error)

    def _stands(self, project: str) -> Wanted | None:
        return self.folder.desired().projects.get(project)

    def _catch_up(self) -> None:
        """Write down what was done, where this was cut off before it could."""
        try:
            for project in self.folder.desired().projects:
                decided = acting.unfinished(self.ledger, self.folder.environment, project)
                if decided and (said := acting.finish(self.ledger, decided, self._stands(project))):
                    _say(f"{project}: {said}")
        except FtaasError:
            return  # said where something is to be done
        self._unsure = False


def _words(said: dict[str, Any]) -> str:
    if why := said.get("refused"):
        return f"{said['action']} is not done: {why}"
    return str(said.get("did") or said.get("reason", ""))


def _loud(said: dict[str, Any]) -> bool:
    """Whether the log is told: figures change with every request, an act, a refusal or a fault does not."""
    return bool(said["action"] or said["reason"].startswith("cannot"))


def _say(message: str) -> None:
    line = {"time": now(), "level": "warning", "logger": "ftaas.rollout", "event": message}
    print(json.dumps(line, ensure_ascii=False), flush=True)


def main(argv: list[str] | None = None) -> int:
    """Watch one environment until SIGTERM, until no project has a rule, or its supervisor is gone."""
    parser = argparse.ArgumentParser(prog="python -m ftaas_pipelines.serving.rollout.watch")
    parser.add_argument("--environment", required=True, choices=all_settings.ENVIRONMENTS)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the supervisor, which ends this
    parent, settings = os.getppid(), all_settings.load()
    watch = Watch(settings, Folder(settings.home, options.environment))
    while os.getppid() == parent:
        began = time.process_time()
        watch.tick()
        if watch.over:
            return 0
        rest = max(1.0, settings.rollout_every_s, (time.process_time() - began) / _SHARE)
        until = time.monotonic() + rest
        while os.getppid() == parent and time.monotonic() < until:
            time.sleep(min(0.5, rest))
    return 0


if __name__ == "__main__":
    sys.exit(main())
