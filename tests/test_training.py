"""How an adapter is made: what it learns from, that it can be made again, that it survives being killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from preparing import make_dataset, write

from ftaas_pipelines.data import made, tables
from ftaas_pipelines.data.rows.records import Message, Record, identity
from ftaas_pipelines.errors import InputInvalid, SpecUnusable
from ftaas_pipelines.inference import bases, templates
from ftaas_pipelines.projects.adapter import FullFineTuning, LoRA
from ftaas_pipelines.projects.method import Seq2Seq, Sft
from ftaas_pipelines.projects.recipe import Recipe, Training
from ftaas_pipelines.stages import train as stage
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Artifact, Store
from ftaas_pipelines.training import checkpoints, data, machine
from ftaas_pipelines.training.inputs import TrainInputs
from ftaas_pipelines.training.materials import Materials
from ftaas_pipelines.training.plan import resolve_training
from ftaas_pipelines.training.resolve import resolve

CAUSAL, T5 = "embedded/tiny-causal", "embedded/tiny-t5"
ROOT = Path(__file__).parent.parent
ROWS = 48


class Heard:
    """A report that remembers."""

    def __init__(self) -> None:
        self.figures: list[tuple[int, dict[str, float]]] = []
        self.shares: list[float] = []
        self.said: list[dict[str, Any]] = []
        self.trials: list[tuple[int, dict[str, Any], str, float | None]] = []

    def progress(self, done: float, message: str) -> None:
        self.shares.append(done)

    def metrics(self, step: int, values: dict[str, float], trial: int | None = None) -> None:
        self.figures.append((step, values))

    def trial(self, number: int, values: dict[str, Any], state: str, loss: float | None) -> None:
        self.trials.append((number, values, state, loss))

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        self.said += rows


def base(id: str = CAUSAL) -> Path:
    return bases.resolve(id, "main", ROOT)


def chat(*texts: str) -> list[Message]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def record(messages: list[Message], **extra: Any) -> dict[str, Any]:
    """A row of the record table, as `prepare` writes it."""
    record = Record(identity(messages, extra), messages, "rows", None, 1, extra=extra)
    return made.row(record)


def faults(first: int, count: int) -> list[dict[str, Any]]:
    return [
        record(chat(f"What does fault E{i % 7} of unit {i} mean?", f"Pump {i % 7} is hot."))
        for i in range(first, first + count)
    ]


def write_splits(folder: Path, train: list[dict[str, Any]], validation: list[dict[str, Any]]) -> None:
    tables.write_rows(folder / "train.parquet", train, tables.RECORDS)
    tables.write_rows(folder / "validation.parquet", validation, tables.RECORDS)


def materials(splits: Path, base_path: Path, max_tokens: int = 512) -> Materials:
    """What a supervised training on these splits has before it."""
    family = bases.family(base_path)
    inputs = TrainInputs(
        splits="0" * 64,
        base=bases.digest(base_path),
        family=family,
        method=Sft() if family == "causal" else Seq2Seq(kind="seq2seq"),
        adapter=LoRA(),
        training=Training(max_seq_tokens=max_tokens),
        threads=1,
    )
    return Materials(inputs, splits, base_path).with_tokenizer()


def make_splits(store: Store) -> Artifact:
    with store.create("splits", f"rows {ROWS}") as draft:
        write_splits(draft.path, faults(0, ROWS), faults(1000, 12))
        draft.content["counts"] = {"train": ROWS, "validation": 12}
    return draft.made


def make_spec(
    root: Path,
    base_path: Path,
    adapter: LoRA | FullFineTuning | None = None,
    max_minutes: float | None = None,
    **training: Any,
) -> Spec:
    splits = make_splits(Store(root))
    asked = Training(**{"max_steps": 4, "batch_size": 8, "learning_rate": 1e-3, "seed": 3, **training})
    recipe = Recipe(name="r", adapter=adapter or LoRA(dropout=0.1), training=asked)
    how = resolve(recipe, splits.content["counts"], bases.family(base_path), machine.found())
    inputs = TrainInputs(
        splits=splits.digest,
        base=bases.digest(base_path),
        family=bases.family(base_path),
        method=how.method,
        adapter=how.adapter,
        training=how.training,
        threads=1,
    )
    return Spec.model_validate(
        {
            "stage": "train",
            "project": "demo",
            "asset": "adapter_lora",
            "inputs": inputs.model_dump(mode="json"),
            "run": {
                "home": str(root),
                "store": str(root),
                "ledger": f"sqlite:///{root}/ledger.db",
                "actor": "anna@example.com",
                "base_path": str(base_path),
                "experiment": True,
                "max_minutes": max_minutes,
            },
        }
    )


def start(spec: Spec, folder: Path, hash_seed: int) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "ftaas_pipelines.stages.train", "--ungoverned"]
    command += ["--spec", str(folder / "spec.json"), "--out", str(folder / "result.json")]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stderr=log, stdout=log)


def finish(spec: Spec, folder: Path, hash_seed: int) -> str:
    code = start(spec, folder, hash_seed).wait(timeout=300)
    assert code == 0, (folder / "log").read_text("utf-8")[-2000:]
    return json.loads((folder / "result.json").read_text("utf-8"))["digest"]


def stop_after_checkpoint(spec: Spec, folder: Path, step: int, number: signal.Signals) -> int:
    """Start, wait for a whole checkpoint of at least that step, send the signal; the exit code."""
    child = start(spec, folder, 5)
    work = Store(spec.run.store).work(spec.input_digest)
    deadline = time.monotonic() + 200
    while not any(int(p.parent.name[11:]) >= step for p in work.glob(f"checkpoint-*/{checkpoints.MARKER}")):
        assert child.poll() is None and time.monotonic() < deadline, (folder / "log").read_text("utf-8")[
            -2000:
        ]
        time.sleep(0.002)
    child.send_signal(number)
    return child.wait(timeout=60)


# -- what it learns from ---------------------------------------------------------------------------


def test_loss_is_on_the_answers_and_their_end_alone() -> None:
    tokenizer = bases.load_tokenizer(base())
    messages = chat("Is E1 bad?", "Yes.", "And E2?", "No, it is not.")
    example = templates.example(tokenizer, messages, "causal", 512)
    taught = tokenizer.decode([t for t in example.labels if t != templates.IGNORED])
    assert taught == "Yes.<|end|>No, it is not.<|end|>"
    assert len(example.labels) == len(example.input_ids)
    prompt = templates.prompt_ids(tokenizer, messages[:-1], "causal")
    assert example.input_ids[: len(prompt)] == prompt, "trained behind what serving shows"


def test_a_tokenizer_without_a_chat_template_gets_the_plain_one() -> None:
    tokenizer = bases.load_tokenizer(base())
    tokenizer.chat_template = None
    tokenizer = templates.complete(tokenizer, "causal")
    assert templates.prompt_text(tokenizer, chat("Hi")) == "### User:\nHi\n\n### Assistant:\n"
    example = templates.example(tokenizer, chat("Hi", "Ho", "He", "Ha"), "causal", 512)
    assert tokenizer.decode([t for t in example.labels if t != templates.IGNORED]) == "Ho<|end|>Ha<|end|>"


def test_a_template_that_rewrites_earlier_turns_is_taught_on_its_last_answer() -> None:
    tokenizer = bases.load_tokenizer(base())
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}[{{ m['content'] }}]{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    example = templates.example(tokenizer, chat("a", "b", "c", "d"), "causal", 512)
    assert tokenizer.decode([t for t in example.labels if t != templates.IGNORED]) == "d<|end|>"
    assert tokenizer.decode(example.input_ids) == "[a][c]>d<|end|>"


def test_records_without_room_for_their_answer_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputInvalid, match=r"max_seq_tokens=8.*record [0-9a-f]{64}") as error:
        stage.make(make_spec(tmp_path, base(), max_seq_tokens=8), Store(tmp_path), Heard())
    assert error.value.exit_code == 2
    assert not Store(tmp_path).all("adapter")


def test_a_plain_text_is_learnt_from_its_first_token_to_its_end() -> None:
    tokenizer, text = bases.load_tokenizer(base()), "Pump 7 runs hot. So does pump 8."
    plain = templates.example(tokenizer, chat("", text)[1:], "causal", 512)
    assert tokenizer.decode(plain.input_ids) == f"{text}<|end|>" and plain.labels == plain.input_ids
    cut = templates.example(tokenizer, chat("", text)[1:], "causal", 4)
    assert cut.input_ids == cut.labels == plain.input_ids[:4]


def test_plain_text_trains_a_causal_base_and_no_t5(tmp_path: Path) -> None:
    texts = [
        record([{"role": "assistant", "content": f"Unit {i} stands in hall {i % 3}."}]) for i in range(4)
    ]
    assert {row["kind"] for row in texts} == {"text"}
    write_splits(tmp_path, [*texts, *faults(0, 2)], [])
    found = data.load(materials(tmp_path, base()))
    whole = [row for row in found.train if row["labels"] == row["input_ids"]]
    assert len(found.train) == 6 and len(whole) == 4 and found.truncated == 0
    with pytest.raises(InputInvalid, match=r"seq2seq base cannot learn plain text.*choose a causal base"):
        data.load(materials(tmp_path, base(T5)))


def test_the_datasets_system_message_stands_before_no_plain_text(tmp_path: Path) -> None:
    texts = write(tmp_path / "a.jsonl", [{"text": f"Unit {i} stands in hall {i % 3}."} for i in range(30)])
    pairs = write(tmp_path / "b.jsonl", [(f"Where is unit {i}?", f"In hall {i % 3}.") for i in range(30)])
    made = make_dataset(Store(tmp_path), {"texts": texts, "pairs": pairs}, system="Be brief.")
    rows = tables.read(made.file("records"), ["kind", "messages"]).to_pylist()
    assert {(r["kind"], (r["messages"] or "").count("Be brief.")) for r in rows} == {
        ("text", 0),
        ("text_pair", 1),
    }


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (record(chat("Is it hot?", "No."), label=False), "labels"),
        (record(chat("Is it hot?", "No."), tools=[{"type": "function"}]), "tools"),
        (
            record(
                [
                    {"role": "user", "content": "Is it hot?"},
                    {
                        "role": "assistant",
                        "content": "",
                        "tool_calls": [
                            {"id": "1", "type": "function", "function": {"name": "heat", "arguments": "{}"}}
                        ],
                    },
                ]
            ),
            "tools",
        ),
        (
            record(
                [
                    {"role": "user", "content": "Is it hot?", "images": [{"ref": "a.png", "sha256": None}]},
                    {"role": "assistant", "content": "No."},
                ]
            ),
            "images",
        ),
    ],
    ids=["labels", "tools", "a tool call", "images"],
)
def test_sft_refuses_what_it_would_learn_wrongly(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    write_splits(tmp_path, [*faults(0, 3), row], [])
    with pytest.raises(InputInvalid) as refused:
        data.load(materials(tmp_path, base()))
    [problem] = refused.value.problems
    assert f"method sft cannot learn from 1 of 4 records: they have {said}" in problem.what
    assert row["record_id"] in problem.got and problem.where == "train.parquet"


def test_accumulation_learns_what_a_large_batch_learns(tmp_path: Path) -> None:
    losses: list[list[float]] = []
    for batch, accumulation in ((8, 1), (4, 2)):
        heard = Heard()
        spec = make_spec(
            tmp_path, base(), LoRA(), max_steps=6, batch_size=batch, gradient_accumulation=accumulation
        )
        stage.make(spec, Store(tmp_path), heard)
        losses.append([values["loss"] for _, values in heard.figures if "loss" in values])
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# -- what is made ----------------------------------------------------------------------------------


def test_a_lora_adapter_is_a_plain_peft_folder(tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    heard, spec = Heard(), make_spec(tmp_path, base())
    artifact = stage.make(spec, Store(tmp_path), heard)
    config = json.loads(artifact.file("adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == f"sha256:{bases.digest(base())}"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert "lm_head" not in config["target_modules"]
    identity = artifact.file("manifest.json").read_text("utf-8") + json.dumps(config)
    assert str(tmp_path) not in identity and "version" not in identity

    model = PeftModel.from_pretrained(bases.load_model(base()), str(artifact.path)).eval()
    ids = torch.tensor([[10, 20, 30]])
    with torch.no_grad():
        adapted = model(ids).logits
        with model.disable_adapter():
            assert not torch.equal(adapted, model(ids).logits)

    assert artifact.content["adapter"] == "lora" and artifact.content["steps"] == 4
    assert artifact.attestation["libraries"]["peft"] and artifact.attestation["spec"]["inputs"] == spec.inputs
    assert artifact.file("beside/loss.png").stat().st_size < 60_000
    lines = artifact.file("beside/metrics.jsonl").read_text("utf-8").splitlines()
    assert any("eval_loss" in json.loads(line) for line in lines)
    assert heard.shares == sorted(heard.shares) and heard.shares[-1] == 1.0
    last = [values for _, values in heard.figures if "loss" in values][-1]
    assert last["tokens_per_second"] > 0 and last["eta_seconds"] == 0 and last["grad_norm"] > 0
    assert not (tmp_path / "work" / spec.input_digest).exists()


@pytest.mark.parametrize("adapter", [LoRA(), FullFineTuning(kind="full")], ids=["lora", "full"])
def test_t5_learns_both_ways(tmp_path: Path, adapter: LoRA | FullFineTuning) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM

    heard = Heard()
    spec = make_spec(tmp_path, base(T5), adapter, max_steps=8, learning_rate=3e-3)
    artifact = stage.make(spec, Store(tmp_path), heard)
    losses = [values["loss"] for _, values in heard.figures if "loss" in values]
    assert losses[-1] < losses[0]
    if adapter.kind == "lora":
        PeftModel.from_pretrained(bases.load_model(base(T5)), str(artifact.path))
    else:
        AutoModelForSeq2SeqLM.from_pretrained(artifact.path)
        assert bases.check(artifact.path, "seq2seq") == "seq2seq"
        bases.load_tokenizer(artifact.path)


# -- made again, killed, stopped -------------------------------------------------------------------


def test_killed_and_stopped_it_still_makes_the_same_adapter(tmp_path: Path) -> None:
    """Other process, other hash seed, base from a folder, kill -9, SIGTERM, a torn checkpoint: one digest."""
    asked = {"max_steps": 30, "save_steps": 4, "eval_steps": 7}
    straight = make_spec(tmp_path / "a", base(), **asked)
    expected = finish(straight, tmp_path / "a", hash_seed=1)

    copied = tmp_path / "base"
    shutil.copytree(base(), copied)
    (copied / "README.md").write_text("not part of the model", encoding="utf-8")
    spec = make_spec(tmp_path / "b", copied, **asked)
    assert spec.input_digest == straight.input_digest

    assert stop_after_checkpoint(spec, tmp_path / "b", 4, signal.SIGKILL) == -signal.SIGKILL
    work = Store(tmp_path / "b").work(spec.input_digest)
    whole = checkpoints.newest(work)
    assert whole is not None
    torn = work / "checkpoint-29"
    shutil.copytree(whole, torn)
    (torn / "optimizer.pt").write_bytes(b"half")
    (torn / checkpoints.MARKER).unlink()
    step = int(whole.name[11:]) + 4
    assert stop_after_checkpoint(spec, tmp_path / "b", step, signal.SIGTERM) == 130
    assert not torn.exists() and not Store(tmp_path / "b").all("adapter")

    assert finish(spec, tmp_path / "b", hash_seed=2) == expected
    artifact = Store(tmp_path / "b").get(expected)
    assert artifact.attestation["resumed_from"] >= step
    steps = [
        json.loads(x)["step"] for x in artifact.file("beside/metrics.jsonl").read_text("utf-8").splitlines()
    ]
    assert steps == sorted(steps) and steps[0] == 1, "the curve is whole, too"


def test_killed_between_its_last_step_and_its_artifact_it_is_read_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftaas_pipelines.training import save

    asked = {"schedule": "constant", "learning_rate": 5e-3}
    expected = stage.make(make_spec(tmp_path / "a", base(), **asked), Store(tmp_path / "a"), Heard())
    spec = make_spec(tmp_path / "b", base(), **asked)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(save, "lora", killed)
        stage.make(spec, Store(tmp_path / "b"), Heard())
    heard = Heard()
    again = stage.make(spec, Store(tmp_path / "b"), heard)
    assert expected is not None and again is not None
    assert again.digest == expected.digest and not heard.figures


def test_resolving_a_training_writes_every_default_in() -> None:
    by_epochs = resolve_training(Training(epochs=2.0, batch_size=4, gradient_accumulation=2), 33)
    assert (by_epochs.max_steps, by_epochs.eval_steps, by_epochs.save_steps) == (10, 1, 1)
    by_steps = resolve_training(Training(max_steps=10, batch_size=4, gradient_accumulation=2), 33)
    assert by_steps == by_epochs == resolve_training(by_epochs, 33)


# -- base models -----------------------------------------------------------------------------------


def test_a_base_that_is_not_the_specs_is_not_trained_on(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, base())
    spec.inputs["base"] = "0" * 64
    with pytest.raises(SpecUnusable, match="another base model"):
        stage.make(spec, Store(tmp_path), Heard())


def test_base_models_that_cannot_be_used_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputInvalid, match="seq2seq is asked for"):
        bases.check(base(), "seq2seq")
    with pytest.raises(InputInvalid, match=r"embedded/tiny-causal"):
        bases.resolve("embedded/none", "main", tmp_path)
    with pytest.raises(InputInvalid, match="not there"):
        bases.resolve("./nowhere", "main", tmp_path)
    (tmp_path / "empty").mkdir()
    assert bases.resolve("empty", "main", tmp_path) == tmp_path / "empty"
    with pytest.raises(InputInvalid, match=r"config\.json"):
        bases.digest(tmp_path / "empty")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputInvalid, match="download it beforehand"):
        bases.resolve("acme/no-such-model", "main", tmp_path)


def test_the_digest_of_a_base_is_over_what_matters(tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(base(), copied)
    (copied / "NOTES.md").write_text("x", encoding="utf-8")
    assert bases.digest(copied) == bases.digest(base())
    with (copied / "chat_template.jinja").open("a", encoding="utf-8") as file:
        file.write(" ")
    assert bases.digest(copied) != bases.digest(base())
