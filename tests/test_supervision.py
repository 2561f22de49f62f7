"""What is taught is the answers, all of them, and nothing else: proved before the first step."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_training import Heard, base, chat, make_spec, materials, record, write_splits

from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.inference import bases, templates
from ftaas_pipelines.projects.method import Sft
from ftaas_pipelines.stages import train as stage
from ftaas_pipelines.store import Store
from ftaas_pipelines.training import checkpoints, data, supervision
from ftaas_pipelines.training.data import TrainingData
from ftaas_pipelines.training.materials import Materials


def rows(count: int = 12) -> list[dict[str, Any]]:
    one = [record(chat(f"What is code {i}?", f"Pump {i}.")) for i in range(count)]
    two = [record(chat(f"Is {i} hot?", "Yes.", "And cold?", f"No, it is not {i}.")) for i in range(count)]
    return [*one, *two]


def proved(folder: Path, method: Sft | None = None) -> tuple[supervision.Proof, TrainingData, Materials]:
    write_splits(folder, rows(), rows(2))
    made = materials(folder, base())
    made = made.with_inputs(made.inputs.model_copy(update={"method": method or Sft()}))
    found = data.pack(data.load(made), (method or Sft()).packing, 128)
    return supervision.prove(made, found, bases.load_model(base())), found, made


def test_every_example_is_counted_and_read_back(tmp_path: Path) -> None:
    proof, found, made = proved(tmp_path)
    assert (proof.examples, proof.read, proof.round_trips, proof.unended) == (24, 24, 24, 0)
    labels = [label for row in found.train["labels"] for label in row]
    assert proof.supervised == sum(label != templates.IGNORED for label in labels) < proof.tokens
    assert 0 < proof.least <= proof.middle <= proof.most
    ends = [label for label in labels if label == made.tokenizer.eos_token_id]
    assert len(ends) == 12 + 2 * 12, "each answer of each conversation teaches its end"


def test_packed_and_separate_rows_have_the_same_logits(tmp_path: Path) -> None:
    proof, found, _ = proved(tmp_path, Sft(packing="bfd"))
    assert len(found.train) < 24 and proof.packed_difference is not None
    assert proof.packed_difference < 1e-4


def test_packed_rows_that_see_each_other_are_refused(tmp_path: Path) -> None:
    _, found, made = proved(tmp_path, Sft(packing="bfd"))

    class Blind:
        """A model that does not look at positions: what attention without isolation does."""

        def __init__(self) -> None:
            self.model = bases.load_model(base())
            self.device, self.training = self.model.device, False

        def __call__(self, position_ids: Any = None, **inputs: Any) -> Any:
            return self.model(**inputs)

        def eval(self) -> None: ...

        def train(self, mode: bool) -> None: ...

    with pytest.raises(FtaasError, match="see each other.*set attention to sdpa"):
        supervision.prove(made, found, Blind())  # type: ignore[arg-type]


def test_an_example_that_teaches_something_else_is_named(tmp_path: Path) -> None:
    _, found, made = proved(tmp_path)
    shifted = found.train.map(lambda one: {"labels": one["input_ids"]} if one["row"] == 3 else {})
    wrong = TrainingData(shifted, None, found.record_ids)
    with pytest.raises(InputInvalid, match="1 of 24 examples.*something else") as error:
        supervision.prove(made, wrong, bases.load_model(base()))
    assert found.record_ids[3] in error.value.problems[0].got


def test_no_supervision_at_all_is_refused_by_name(tmp_path: Path) -> None:
    _, found, made = proved(tmp_path)
    masked = found.train.map(lambda one: {"labels": [templates.IGNORED] * len(one["labels"])})
    with pytest.raises(InputInvalid, match="24 of 24 examples teach nothing") as error:
        supervision.prove(made, TrainingData(masked, None, found.record_ids), bases.load_model(base()))
    assert found.record_ids[0] in error.value.problems[0].got


def test_it_is_proved_once_for_the_same_splits_base_and_method(tmp_path: Path) -> None:
    first = stage.make(make_spec(tmp_path, base(), max_steps=2), Store(tmp_path), Heard())
    again = stage.make(make_spec(tmp_path, base(), max_steps=3), Store(tmp_path), Heard())
    assert first is not None and again is not None
    one, two = first.attestation["supervision"], again.attestation["supervision"]
    assert one["seconds"] > 0 and two == {**one, "seconds": 0.0}
    stage.make(make_spec(tmp_path, base(), max_steps=2, max_seq_tokens=100), Store(tmp_path), Heard())
    assert len(list((tmp_path / "proofs").glob("*.json"))) == 2


# -- a loss that is no number -------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_no_number_stops_names_its_records_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, accumulation: int
) -> None:
    """One record holds a token whose embedding is infinite: the batch with it is the one that is named."""
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "base"
    shutil.copytree(base(), broken)
    weights = load_file(broken / "model.safetensors")
    tokenizer = bases.load_tokenizer(base())
    [rare] = tokenizer("\u00a7", add_special_tokens=False)["input_ids"][-1:]
    weights["model.embed_tokens.weight"][rare] = float("inf")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    bad = record(chat("What does \u00a7 mean?", "A paragraph."))
    spec = make_spec(
        tmp_path, broken, max_steps=12, batch_size=4, gradient_accumulation=accumulation, save_steps=1
    )
    store = Store(tmp_path)
    with store.create("splits", f"bad {accumulation}") as draft:
        write_splits(draft.path, [*rows(), bad], rows(2))
        draft.content["counts"] = {"train": 25, "validation": 4}
    spec.inputs["splits"] = draft.made.digest
    with pytest.raises(FtaasError, match="loss is no longer a number") as error:
        stage.make(spec, store, Heard())
    [problem] = error.value.problems
    assert error.value.exit_code == 1 and bad["record_id"] in problem.got and "step" in problem.where
    assert problem.got.count(",") <= 4, "the batch, not the dataset"
    assert not store.all("adapter")
    kept = checkpoints.newest(store.work(spec.input_digest))
    if kept is not None:
        state = json.loads((kept / "trainer_state.json").read_text("utf-8"))
        assert all(row["loss"] == row["loss"] for row in state["log_history"] if "loss" in row)
