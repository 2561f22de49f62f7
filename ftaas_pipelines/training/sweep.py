"""A search over settings of a recipe: Optuna proposes, validation loss judges, the worse end early.

Resumable and exact: each finished trial is a line of `trials.jsonl`, a proposal depends on those lines and
its own number alone, and a trial that was interrupted goes on from its checkpoint.
"""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.projects.adapter import LoRA
from ftaas_pipelines.projects.recipe import Search, Sweep
from ftaas_pipelines.training.inputs import TrainInputs
from ftaas_pipelines.training.materials import Materials

if TYPE_CHECKING:
    from optuna.study import Study

    from ftaas_pipelines.training.callbacks import Report
    from ftaas_pipelines.training.run import Trained

FILE = "trials.jsonl"
_WARM_UP = 3  # finished trials before one may be ended early


@dataclass
class Trial:
    """One trial.

    Attributes:
        values: the settings tried.
        losses: validation loss by optimizer step.
        loss: the last of them, what the trial is judged by; None when it failed.
        seconds: training time, over all attempts.
        why: what went wrong, where it failed.
    """

    number: int
    values: dict[str, Any]
    state: Literal["running", "complete", "pruned", "failed"] = "running"
    losses: dict[int, float] = field(default_factory=dict[int, float])
    loss: float | None = None
    seconds: float = 0.0
    why: str = ""


def run(materials: Materials, work: Path, report: "Report", max_minutes: float | None = None) -> "Trained":
    """Try what the sweep asks for; returns the training of the best trial, with the trials in it.

    Args:
        max_minutes: training time of all trials together.

    Raises:
        InputInvalid: there is no validation split to judge by, or a setting cannot be searched.
        FtaasError: no trial came to its end.
    """
    sweep = materials.inputs.sweep
    assert sweep is not None
    check(materials.inputs)
    materials, max_minutes = _together(materials, max_minutes)
    trials = _read(work / FILE)
    for number in range(len(trials), sweep.trials):
        trial = Trial(number, _proposed(sweep, trials, number))
        left = None if max_minutes is None else max(0.0, max_minutes - sum(t.seconds for t in trials) / 60)
        _try(materials, work, _Heard(report, trial, sweep.trials), trial, trials, left)
        trials.append(trial)
        _write(work / FILE, trials)
        _forget(work, trials)
    best = _best(trials)
    if best is None:
        raise FtaasError(
            "no trial of the sweep came to its end",
            "recipes.sweep",
            "; ".join(f"{t.number}: {t.why or t.state}" for t in trials[:3]),
            "narrow the search, or look at the first trial's error",
        )
    from ftaas_pipelines.training import run as one

    inputs = changed(materials.inputs, best.values)
    # It stands at its last checkpoint: this reads the weights again.
    trained = one.train(materials.with_inputs(inputs), folder(work, best.number), _Silent(report))
    seconds = sum(t.seconds for t in trials)
    return replace(trained, seconds=seconds, trials=[asdict(t) for t in trials], best=best.number)


def _together(materials: Materials, max_minutes: float | None) -> tuple[Materials, float | None]:
    """One budget for all trials: whatever it bounds, as training time, which the trials share."""
    costs, spread = materials.costs, materials.inputs.training.distributed
    limits = [max_minutes, costs.minutes(spread.processes, spread.nodes)]
    shared = replace(materials, costs=replace(costs, bounds={}))
    return shared, min((m for m in limits if m is not None), default=None)


def check(inputs: TrainInputs) -> None:
    """That every searched setting is one of the recipe, before anything is trained.

    Raises:
        InputInvalid: one is not, or a value is none that it takes.
    """
    assert inputs.sweep is not None
    for key, search in inputs.sweep.search.items():
        for value in search.choices or [search.low, search.high]:
            changed(inputs, {key: value})


def changed(inputs: TrainInputs, values: dict[str, Any]) -> TrainInputs:
    """The inputs of one trial: some settings set, no sweep.

    Raises:
        InputInvalid: no such setting, or a value it does not take.
    """
    document: dict[str, Any] = inputs.model_dump(mode="json") | {"sweep": None}
    for path, value in values.items():
        *parents, last = path.split(".")
        place: Any = document if parents and parents[0] in ("training", "adapter", "method") else None
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            do = "search settings of training, adapter or method, such as training.learning_rate"
            raise InputInvalid("is no setting of the recipe", "recipes.sweep.search", path, do)
        place[last] = value
    if isinstance(inputs.adapter, LoRA) and "adapter.r" in values and "adapter.alpha" not in values:
        scale = inputs.adapter.alpha / inputs.adapter.r
        document["adapter"]["alpha"] = max(
            1, round(scale * values["adapter.r"])
        )  # the same strength at any rank
    try:
        return TrainInputs.model_validate(document)
    except ValidationError as error:
        problem = error.errors()[0]
        where = f"recipes.sweep.search.{'.'.join(map(str, problem['loc']))}"
        raise InputInvalid(problem["msg"], where, repr(problem["input"]), "mend the range") from None


def folder(work: Path, number: int) -> Path:
    """Where a trial's checkpoints lie."""
    return work / f"trial-{number}"


def _try(
    materials: Materials,
    work: Path,
    report: "_Heard",
    trial: Trial,
    before: Sequence[Trial],
    minutes: float | None,
) -> None:
    """Train one trial to its end, or until it is worse than the median of those before."""
    from ftaas_pipelines.training import run as one
    from ftaas_pipelines.training.pruning import Pruning

    sweep = materials.inputs.sweep
    assert sweep is not None
    report.trial(trial.number, trial.values, "running", None)
    inputs = changed(materials.inputs, trial.values)
    finished = [t.losses for t in before if t.state == "complete"]
    pruning = Pruning(trial.losses, finished if sweep.prune and len(finished) >= _WARM_UP else [])
    place = folder(work, trial.number)
    place.mkdir(parents=True, exist_ok=True)
    try:
        trained = one.train(materials.with_inputs(inputs), place, report, minutes, more=[pruning])
    except FtaasError as error:
        if type(error) is not FtaasError:  # a signal, a budget, a wrong input: not the trial's own failure
            raise
        trial.state, trial.why = "failed", str(error)
    else:
        if not trial.losses:
            raise InputInvalid(
                "a sweep is judged by validation loss, and there is no validation split",
                "dataset.splits.validation",
                do="raise it above 0",
            )
        trial.seconds = round(trained.seconds, 3)
        trial.state = "pruned" if pruning.pruned else "complete"
        trial.loss = trial.losses[max(trial.losses)]
    report.trial(trial.number, trial.values, trial.state, trial.loss)


def _proposed(sweep: Sweep, trials: Sequence[Trial], number: int) -> dict[str, Any]:
    """The settings of the next trial: they depend on the finished ones and the number alone."""
    study = _study(sweep, trials, number)
    asked = study.ask()
    return {key: _suggested(asked, key, search) for key, search in sorted(sweep.search.items())}


def _study(sweep: Sweep, trials: Sequence[Trial], number: int) -> "Study":
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=sweep.seed + number))
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
    space = {key: _distribution(search) for key, search in sorted(sweep.search.items())}
    for trial in trials:
        state = states.get(trial.state, TrialState.FAIL)
        study.add_trial(
            create_trial(
                state=state,
                value=trial.loss if state == TrialState.COMPLETE else None,
                params={key: trial.values[key] for key in space},
                distributions=space,
                intermediate_values=dict(trial.losses),
            )
        )
    return study


def _distribution(search: Search) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if search.choices:
        return CategoricalDistribution(search.choices)
    low, high = search.low, search.high
    assert low is not None and high is not None
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=search.log)
    return FloatDistribution(float(low), float(high), log=search.log)


def _suggested(trial: Any, key: str, search: Search) -> Any:
    return trial._suggest(key, _distribution(search))  # the public verbs only tell the three kinds apart


def _best(trials: Sequence[Trial]) -> Trial | None:
    ended = [t for t in trials if t.state == "complete" and t.loss is not None and math.isfinite(t.loss)]
    return min(ended, key=lambda t: (t.loss or 0.0, t.number), default=None)


def _forget(work: Path, trials: Sequence[Trial]) -> None:
    """Checkpoints of all trials but the best are room for the next."""
    best = _best(trials)
    for trial in trials:
        if best is None or trial.number != best.number:
            shutil.rmtree(folder(work, trial.number), ignore_errors=True)


def _read(file: Path) -> list[Trial]:
    if not file.is_file():
        return []
    rows: list[dict[str, Any]] = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    trials = [Trial(**row) for row in rows]
    for trial in trials:
        trial.losses = {int(step): loss for step, loss in trial.losses.items()}
    return trials


def _write(file: Path, trials: Sequence[Trial]) -> None:
    """Whole or not at all: a killed sweep never finds half a line."""
    temporary = file.with_name(f".{file.name}")
    temporary.write_text("".join(json.dumps(asdict(t)) + "\n" for t in trials), encoding="utf-8")
    temporary.replace(file)


class _Heard:
    """The report of one trial: its figures carry its number."""

    def __init__(self, report: "Report", trial: Trial, trials: int):
        self._report, self._trial, self._trials = report, trial, trials

    def progress(self, done: float, message: str) -> None:
        share = (self._trial.number + done) / self._trials
        self._report.progress(0.96 * share, f"trial {self._trial.number + 1} of {self._trials}: {message}")

    def metrics(self, step: int, values: dict[str, float], trial: int | None = None) -> None:
        self._report.metrics(step, values, self._trial.number)

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None: ...

    def trial(self, number: int, values: dict[str, Any], state: str, loss: float | None) -> None:
        self._report.trial(number, values, state, loss)


class _Silent(_Heard):
    """The best trial read again says nothing."""

    def __init__(self, report: "Report"):
        super().__init__(report, Trial(0, {}), 1)

    def progress(self, done: float, message: str) -> None: ...

    def metrics(self, step: int, values: dict[str, float], trial: int | None = None) -> None: ...
