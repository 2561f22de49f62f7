"""Images from the data to the answer: a base that sees, what it is taught, and that it learns by looking."""

import asyncio
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from preparing import Silent, make_dataset, make_splits, write

from ftaas_pipelines.data import made, tables
from ftaas_pipelines.data.rows.records import Record, identity
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.inference import bases
from ftaas_pipelines.projects.recipe import Recipe
from ftaas_pipelines.stages import evaluate
from ftaas_pipelines.stages import train as stage
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Artifact, Store
from ftaas_pipelines.training import checkpoints, machine
from ftaas_pipelines.training.inputs import TrainInputs
from ftaas_pipelines.training.materials import Materials
from ftaas_pipelines.training.resolve import resolve

BASE = bases.resolve("embedded/tiny-vision", "main", Path())
ROOT = Path(__file__).parent.parent
ASKED = "What is this sign called?"
# Signs of no real alphabet, and words of no language.
SIGNS = {
    ("red", "triangle"): "lorum",
    ("blue", "circle"): "tavek",
    ("green", "square"): "misto",
    ("black", "cross"): "quorf",
    ("red", "ring"): "zelip",
    ("green", "triangle"): "hepso",
}
PAINT = {"red": (200, 45, 45), "blue": (45, 85, 195), "green": (45, 145, 65), "black": (25, 25, 25)}


def picture(colour: str, shape: str, rng: random.Random) -> bytes:
    """A PNG of a sign: its size, place and ground are never twice the same."""
    from PIL import Image, ImageDraw

    side, ink = rng.randint(60, 110), PAINT[colour]
    image = Image.new("RGB", (side, side), rng.choice([(230, 230, 230), (215, 220, 225), (225, 215, 200)]))
    pen = ImageDraw.Draw(image)
    r = rng.uniform(0.2, 0.36) * side
    x, y = (rng.uniform(r + 2, side - r - 2) for _ in range(2))
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    elif shape == "ring":
        pen.ellipse((x - r, y - r, x + r, y + r), outline=ink, width=int(r * 0.38))
    elif shape == "square":
        pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=ink)
    elif shape == "triangle":
        pen.polygon([(x, y - r), (x + 0.95 * r, y + 0.8 * r), (x - 0.95 * r, y + 0.8 * r)], fill=ink)
    else:
        pen.rectangle((x - 0.95 * r, y - 0.33 * r, x + 0.95 * r, y + 0.33 * r), fill=ink)
        pen.rectangle((x - 0.33 * r, y - 0.95 * r, x + 0.33 * r, y + 0.95 * r), fill=ink)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def put(folder: Path, count: int, seed: int) -> Path:
    """So many rows that each show a sign, every tenth row of text alone, and the pictures beside them."""
    rng = random.Random(seed)
    (folder / "signs").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for i in range(count):
        (colour, shape), word = list(SIGNS.items())[i % len(SIGNS)]
        (folder / "signs" / f"{i}.png").write_bytes(picture(colour, shape, rng))
        question = {"role": "user", "content": ASKED, "images": [f"signs/{i}.png"]}
        rows.append({"messages": [question, {"role": "assistant", "content": word}]})
        if i % 10 == 0:
            said = [{"role": "user", "content": f"Does sign {i} stand in hall {i % 3}?"}]
            rows.append({"messages": [*said, {"role": "assistant", "content": "Yes."}]})
    return write(folder / "rows.jsonl", rows)


@dataclass(frozen=True)
class Signs:
    """The signs as a dataset version and splits, by the data plane itself."""

    root: Path
    store: Store
    dataset: Artifact
    splits: Artifact


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Signs:
    root = tmp_path_factory.mktemp("signs")
    store = Store(root / "store")
    dataset = make_dataset(store, {"main": put(root / "raw", 210, 1)})
    return Signs(root, store, dataset, make_splits(store, dataset))


def train_spec(signs: Signs, root: Path | None = None, **recipe: Any) -> Spec:
    training = {"max_steps": 36, "batch_size": 16, "learning_rate": 5e-3, "seed": 3, "max_seq_tokens": 128}
    asked = {"method": "vision", **recipe, "training": {**training, **recipe.get("training", {})}}
    how = resolve(
        Recipe.model_validate({"name": "signs", **asked}),
        signs.splits.content["counts"],
        "vision",
        machine.found(),
    )
    inputs = TrainInputs(
        splits=signs.splits.digest,
        base=bases.digest(BASE),
        family="vision",
        method=how.method,
        adapter=how.adapter,
        training=how.training,
        threads=1,
    )
    return spec(signs, "train", "adapter_signs", inputs.model_dump(mode="json"), root)


def spec(signs: Signs, name: str, asset: str, inputs: dict[str, Any], root: Path | None = None) -> Spec:
    store = root or signs.store.root
    run = {
        "home": str(store),
        "store": str(store),
        "ledger": f"sqlite:///{signs.root}/ledger.db",
        "actor": "anna@example.com",
        "base_path": str(BASE),
        "experiment": True,
    }
    return Spec.model_validate(
        {"stage": name, "project": "demo", "asset": asset, "inputs": inputs, "run": run}
    )


def scores(signs: Signs, adapter: Artifact) -> dict[str, Any]:
    """What the evaluate stage says of each system on the test split."""
    inputs = {
        "split": "test",
        "splits": signs.splits.digest,
        "base": bases.digest(BASE),
        "family": "vision",
        "task": "classification",
        "adapters": {"candidate": adapter.digest},
        "options": {"max_new_tokens": 8, "samples": 2},
        "threads": 1,
    }
    found = evaluate.make(spec(signs, "evaluate", "evaluation", inputs), signs.store, Silent())
    systems = found.content["scores"]["sets"]["test"]["systems"]
    return {name: one["overall"]["exact_match"]["value"] for name, one in systems.items()}


def shown(folder: Path, *pictures: bytes) -> list[dict[str, str]]:
    """Images as messages of a dataset version name them; their bytes are put where they are looked for."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = [hashlib.sha256(data).hexdigest() for data in pictures]
    for name, data in zip(names, pictures, strict=True):
        (folder / "images" / name).write_bytes(data)
    return [{"ref": f"images/{name}", "sha256": name} for name in names]


def talks(folder: Path) -> list[list[dict[str, Any]]]:
    """Prompts of many lengths: with one picture, with two, with none, and with one in each of two turns."""
    rng = random.Random(7)
    found: list[list[dict[str, Any]]] = []
    for number, (colour, shape) in enumerate(SIGNS):
        one, two = (shown(folder, picture(colour, shape, rng)) for _ in range(2))
        user = {"role": "user", "content": "What colour is it? " * (1 + number % 3)}
        found += [[{**user, "images": one}], [{**user, "images": [*one, *two]}], [user]]
        answered = [{**user, "images": one}, {"role": "assistant", "content": "A sign."}]
        found.append([{"role": "system", "content": "Look."}, *answered, {**user, "images": two}])
    return found


# -- the base, and what it is shown ----------------------------------------------------------------


def test_what_prepares_the_images_is_part_of_the_base(tmp_path: Path) -> None:
    assert bases.check(BASE, "vision") == "vision"
    copied = tmp_path / "copy"
    shutil.copytree(BASE, copied)
    (copied / "MADE.md").write_text("not part of the model", encoding="utf-8")
    assert bases.digest(copied) == bases.digest(BASE)
    file = copied / "processor_config.json"
    file.write_text(
        file.read_text("utf-8").replace('"do_convert_rgb": true', '"do_convert_rgb": false'), "utf-8"
    )
    assert bases.digest(copied) != bases.digest(BASE)
    assert file in bases.tokenizer_files(copied)


def test_a_batch_of_pictures_answers_as_single_ones_do(tmp_path: Path) -> None:
    from ftaas_pipelines.inference.decoding import Model

    model, prompts = Model(BASE, threads=1, images=tmp_path), talks(tmp_path)
    together = model.generate(prompts, max_new_tokens=12)
    alone = [model.generate([prompt], max_new_tokens=12)[0] for prompt in prompts]
    assert together == alone
    assert len({answer.text for answer in together}) > 3
    losses = model.loss(prompts, ["red ring"] * len(prompts))
    assert losses == pytest.approx([model.loss([p], ["red ring"])[0] for p in prompts], abs=1e-4)


def test_the_answer_comes_from_the_picture(tmp_path: Path) -> None:
    from ftaas_pipelines.inference.decoding import Model

    rng, model = random.Random(3), Model(BASE, threads=1, images=tmp_path)
    truth = [sign for sign in SIGNS for _ in range(4)]
    prompts = [
        [{"role": "user", "content": "Describe the picture.", "images": shown(tmp_path, picture(*sign, rng))}]
        for sign in truth
    ]
    said = [answer.text for answer in model.generate(prompts, max_new_tokens=16)]
    right = sum(text == " ".join(sign) for text, sign in zip(said, truth, strict=True))
    assert right >= 0.8 * len(truth), said


def test_it_is_trained_behind_what_it_is_shown_when_asked(tmp_path: Path) -> None:
    from ftaas_pipelines.inference.pictures import Viewer
    from ftaas_pipelines.inference.templates import IGNORED

    viewer = Viewer(bases.load_processor(BASE), tmp_path)
    one, two = shown(
        tmp_path, picture("red", "ring", random.Random(1)), picture("black", "cross", random.Random(2))
    )
    first = {"role": "user", "content": "What is it?", "images": [one]}
    talk = [first, {"role": "assistant", "content": "A ring."}]
    talk += [
        {"role": "user", "content": "And this?", "images": [two]},
        {"role": "assistant", "content": "A cross."},
    ]
    example = viewer.example(talk)
    taught = viewer.tokenizer.decode([t for t in example.labels if t != IGNORED])
    assert taught == "A ring.<|end|>A cross.<|end|>"
    prompt = viewer.prompt_ids(talk[:-1])
    assert example.input_ids[: len(prompt)] == prompt
    image = viewer.tokenizer.convert_tokens_to_ids("<|image|>")
    assert prompt.count(image) == 72, "36 patches of each"
    # Cut in the second picture, it ends before it: no image is shown in part.
    second = [i for i, token in enumerate(prompt) if token == image][36]
    cut = viewer.example(talk, second + 5)
    assert cut.input_ids == example.input_ids[:second] and viewer.within(cut.input_ids, talk) == [one]


def test_what_cannot_be_seen_is_said(tmp_path: Path) -> None:
    from ftaas_pipelines.inference.pictures import Viewer

    viewer = Viewer(bases.load_processor(BASE), tmp_path)
    [good] = shown(tmp_path, picture("red", "ring", random.Random(1)))
    [text] = shown(tmp_path, b"no picture at all")
    (tmp_path / "images" / good["sha256"]).with_name("0" * 64).write_bytes(b"x")
    for image, said in (
        ({**good, "sha256": "1" * 64}, "is not there"),
        ({**good, "sha256": "0" * 64}, "not those of its name"),
        ({"ref": "https://example.com/a.png", "sha256": None}, "not fetched"),
        ({"ref": "data:image/png;base64,%%%", "sha256": "2" * 64}, "broken data URI"),
        (text, "cannot be read"),
    ):
        with pytest.raises(InputInvalid, match=said):
            viewer.prompt_ids([{"role": "user", "content": "What?", "images": [image]}])
    with pytest.raises(InputInvalid, match="writes the token that stands for an image"):
        viewer.prompt_ids([{"role": "user", "content": "<|image|> What?", "images": [good]}])
    with pytest.raises(InputInvalid, match="not at hand"):
        Viewer(bases.load_processor(BASE), None).prompt_ids(
            [{"role": "user", "content": "?", "images": [good]}]
        )


# -- what it learns --------------------------------------------------------------------------------


def test_records_whose_image_is_gone_are_named(tmp_path: Path) -> None:
    from ftaas_pipelines.training.methods import vision

    [here] = shown(tmp_path, picture("red", "ring", random.Random(1)))
    gone = {"ref": f"images/{'1' * 64}", "sha256": "1" * 64}
    rows: list[dict[str, Any]] = []
    for image in (here, gone):
        said = [
            {"role": "user", "content": ASKED, "images": [image]},
            {"role": "assistant", "content": "zelip"},
        ]
        rows.append(made.row(Record(identity(said, {}), said, "rows", None, 1, extra={})))
    for split, held in (("train", rows), ("validation", [])):
        tables.write_rows(tmp_path / f"{split}.parquet", held, tables.RECORDS)
    inputs = TrainInputs.model_validate(
        {"splits": "0" * 64, "base": bases.digest(BASE), "family": "vision", "threads": 1}
        | Recipe.model_validate({"name": "x", "method": "vision"}).model_dump(
            include={"method", "adapter", "training"}
        )
    )
    with pytest.raises(InputInvalid, match=r"cannot learn from 1 of 2 records.*is not there") as refused:
        vision.data(Materials(inputs, tmp_path, BASE, dataset=tmp_path).with_tokenizer())
    assert rows[1]["record_id"] in str(refused.value) and rows[0]["record_id"] not in str(refused.value)


@pytest.fixture(scope="module")
def learnt(signs: Signs) -> Artifact:
    """The adapter of the signs: words it never saw for signs in pictures, and a little text."""
    adapter = stage.make(train_spec(signs), signs.store, Silent())
    assert adapter is not None
    return adapter


def test_it_learns_new_signs_from_pictures(signs: Signs, learnt: Artifact) -> None:
    """From the JSONL to the test scores, on pictures that it never saw."""
    from peft import PeftModel
    from safetensors import safe_open

    assert learnt.attestation["records"]["records"] == signs.splits.content["counts"]["train"]
    exact = scores(signs, learnt)
    assert exact["base"] <= 0.1 and exact["candidate"] >= 0.9, exact
    assert exact["majority"] <= 0.4, "the question alone does not say it"

    said = [json.loads(line) for line in learnt.file("beside/samples.jsonl").read_text("utf-8").splitlines()]
    assert said[-1]["answer"] == said[-1]["reference"], "a sample sees its picture, too"

    with safe_open(learnt.file("adapter_model.safetensors"), "pt") as file:
        assert all(".language_model." in name for name in file.keys())
    opened = PeftModel.from_pretrained(bases.load_model(BASE), str(learnt.path))
    sits = {name for name, module in opened.named_modules() if hasattr(module, "lora_A")}
    assert sits and not any("vision_tower" in name for name in sits)


def test_an_endpoint_sees_the_images_of_a_request(signs: Signs, learnt: Artifact) -> None:
    """It answers what the evaluation answered; what it cannot see it says in OpenAI's shape."""
    from starlette.testclient import TestClient

    from ftaas_pipelines.inference import pictures
    from ftaas_pipelines.inference.decoding import GREEDY, Model
    from ftaas_pipelines.serving import runtime
    from ftaas_pipelines.serving.app import application
    from ftaas_pipelines.serving.engine import Engine
    from ftaas_pipelines.serving.openai_shapes import RequestRefused
    from ftaas_pipelines.serving.runtime import RuntimeState, ServedRelease

    served = ServedRelease(
        "signs", "r" * 64, learnt.digest, str(learnt.path), bases.digest(BASE), str(BASE), "vision", 8
    )
    engine = Engine()
    engine.load(RuntimeState("staging", runtime.digest(), [served]))
    assert not engine.problems
    prompt = [{"role": "user", "content": ASKED, "images": [first_image(signs)]}]
    body = {
        "model": "signs",
        "messages": pictures.inline(prompt, signs.dataset.path),
        "return_token_ids": True,
    }
    client = TestClient(application(engine))
    said = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    [evaluated] = Model(BASE, {"a": learnt.path}, 1, signs.dataset.path).generate(
        [prompt], "a", max_new_tokens=8
    )
    assert said["message"]["content"] == evaluated.text in SIGNS.values()
    assert said["token_ids"] == evaluated.token_ids

    for url, told in (
        ("https://example.com/a.png", "nothing is fetched"),
        ("data:image/png;base64,aGVsbG8=", "cannot be read"),
    ):
        part = {"type": "image_url", "image_url": {"url": url}}
        asked = {"model": "signs", "messages": [{"role": "user", "content": [part]}]}
        refused = client.post("/v1/chat/completions", json=asked)
        assert refused.status_code == 400 and told in refused.json()["error"]["message"]
    with pytest.raises(RequestRefused, match="does not see images"):
        asyncio.run(engine.submit(replace(served, family="causal"), prompt, 8, GREEDY))
    engine.close()


@pytest.mark.slow
def test_the_tower_learns_where_it_is_asked_to_and_all_of_it_can_be_trained(signs: Signs) -> None:
    from safetensors import safe_open

    few = {"max_steps": 2, "batch_size": 4}
    tower = {"kind": "vision", "train_vision_tower": True}
    adapter = stage.make(train_spec(signs, method=tower, training=few), signs.store, Silent())
    assert adapter is not None
    with safe_open(adapter.file("adapter_model.safetensors"), "pt") as file:
        assert any("vision_tower" in name for name in file.keys())

    whole = stage.make(train_spec(signs, adapter={"kind": "full"}, training=few), signs.store, Silent())
    assert whole is not None and bases.check(whole.path, "vision") == "vision"
    with (
        safe_open(whole.file("model.safetensors"), "pt") as after,
        safe_open(BASE / "model.safetensors", "pt") as old,
    ):
        moved = {n for n in old.keys() if not (after.get_tensor(n) == old.get_tensor(n).float()).all()}
    assert moved and not any("vision_tower" in name for name in moved)
    from ftaas_pipelines.inference.decoding import Model

    model = Model(BASE, {"whole": whole.path}, threads=1, images=signs.dataset.path)
    prompt = [{"role": "user", "content": ASKED, "images": [first_image(signs)]}]
    assert model.generate([prompt], "whole", max_new_tokens=4)[0].prompt_tokens > 36


def first_image(signs: Signs) -> dict[str, str]:
    name = min(path.name for path in signs.dataset.file("images").iterdir())
    return {"ref": f"images/{name}", "sha256": name}


@pytest.mark.slow
def test_killed_and_resumed_it_makes_the_same_adapter(signs: Signs, tmp_path: Path) -> None:
    asked = {"max_steps": 12, "batch_size": 8, "save_steps": 3, "eval_steps": 5}
    straight = stage.make(train_spec(signs, training=asked), signs.store, Silent())
    assert straight is not None
    # Another store, with the splits and the dataset version that they were made of.
    shutil.copytree(signs.store.root, tmp_path / "store", ignore=shutil.ignore_patterns("adapter", "work"))
    spec = train_spec(signs, tmp_path / "store", training=asked)
    assert not Store(tmp_path / "store").all("adapter")
    (tmp_path / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
    child = start(tmp_path, 5)
    work = Store(tmp_path / "store").work(spec.input_digest)
    deadline = time.monotonic() + 200
    while not list(work.glob(f"checkpoint-*/{checkpoints.MARKER}")):
        assert child.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text("utf-8")[
            -2000:
        ]
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait(timeout=60) == -signal.SIGKILL
    assert start(tmp_path, 2).wait(timeout=300) == 0, (tmp_path / "log").read_text("utf-8")[-2000:]
    result = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert result["digest"] == straight.digest
    again = Store(tmp_path / "store").get(result["digest"])
    assert again.attestation["resumed_from"] >= 3


def start(folder: Path, hash_seed: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ftaas_pipelines.stages.train", "--ungoverned"]
    command += ["--spec", str(folder / "spec.json"), "--out", str(folder / "result.json")]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stderr=log, stdout=log)
