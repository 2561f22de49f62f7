"""An adapter made again from the store and the ledger alone, and held against the first."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Ran
from test_training import Heard, base, make_spec

from ftaas_pipelines.stages import replay
from ftaas_pipelines.stages import train as stage
from ftaas_pipelines.store import Store

Run = Callable[..., Ran]


@pytest.mark.slow
def test_replayed_by_command_it_is_the_same_digest_and_the_ledger_says_so(
    home: Path, project_factory: Callable[..., Path], ftaas: Run
) -> None:
    """An experiment, whose data is then gone: the store alone is enough. Then with another base: refused."""
    path = project_factory("codes")
    assert ftaas("run", "codes", "--until", "splits").code in (0, 3)
    done = ftaas("train", "codes", "--recipe", "lora", "--json")
    assert done.code == 0, done.stderr
    digest = done.json["adapter"]
    shutil.rmtree(path.parent / "data")

    again = ftaas("model", "replay", digest[:10], "--json")
    assert again.code == 0, again.stderr
    assert again.json["same"] and again.json["again"] == digest and not again.json["differs"]
    entries = ftaas("ledger", "show", "--json").json["entries"]
    told = [e for e in entries if e["kind"] == "replay"]
    assert len(told) == 1 and told[0]["subject"] == digest and told[0]["body"]["same"]
    assert not list((home / "replays").glob("*")), "nothing is left of it"


def test_another_seed_is_told_apart_and_by_how_much(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = stage.make(make_spec(tmp_path, base()), store, Heard())
    other = stage.make(make_spec(tmp_path, base(), seed=4), store, Heard())
    assert first is not None and other is not None
    same, apart = replay.compared(first, first, "fp32"), replay.compared(first, other, "fp32")
    assert same.same and same.within and same.loss_difference == same.weights_difference == 0
    assert not apart.same and not apart.within and apart.weights_difference > apart.weights_tolerance
    assert json.loads(json.dumps(apart.as_dict()))["digest"] == first.digest
