"""What becomes of an adapter: each form opens elsewhere, says what the adapter says, or is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran
from hub_server import COMMIT, hub
from preparing import Silent
from test_training import CAUSAL, T5, base, chat, make_spec

from ftaas_pipelines.conversion import gguf_tokenizer, targets
from ftaas_pipelines.conversion.inputs import ConvertInputs
from ftaas_pipelines.errors import InputInvalid, Refused
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.inference import bases, templates
from ftaas_pipelines.projects.adapter import FullFineTuning, LoRA
from ftaas_pipelines.stages import convert as stage
from ftaas_pipelines.stages import train
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Artifact, Store

TOKEN = "hf_only_for_this_stand_in"


def trained(root: Path, base_id: str, experiment: bool = False, **asked: Any) -> Artifact:
    spec = make_spec(root, base(base_id), **asked)
    spec.run.experiment = experiment
    made = train.make(spec, Store(root), Silent())
    assert made is not None
    return made


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A LoRA adapter that learnt the faults of `test_training`, in a store of its own."""
    root = tmp_path_factory.mktemp("adapter")
    return trained(root, CAUSAL, adapter=LoRA(r=16, alpha=32), max_steps=80, learning_rate=5e-3)


@pytest.fixture(scope="module")
def t5_adapter(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An experiment on the T5 base."""
    return trained(tmp_path_factory.mktemp("t5"), T5, experiment=True, max_steps=8, learning_rate=3e-3)


def store_of(artifact: Artifact) -> Store:
    return Store(artifact.path.parents[2])


def make(
    adapter: Artifact,
    target: str,
    precision: str | None = None,
    sparsity: float | None = None,
    threshold: float = 0.02,
) -> Artifact:
    """The conversion, made anew in the adapter's own store."""
    store, content = store_of(adapter), adapter.content
    folder = base(T5 if content["family"] == "seq2seq" else CAUSAL)
    config = targets.configuration(adapter.path if content["adapter"] == "full" else folder)
    form, weights, share = targets.resolve(target, precision, sparsity, config)
    inputs = ConvertInputs(
        adapter=adapter.digest,
        base=content["base"],
        family=content["family"],
        splits=content["splits"],
        target=form,
        precision=weights,
        sparsity=share,
        threshold=threshold,
        primary="exact_match",
        max_new_tokens=24,
        threads=1,
    )
    run = {"home": store.root, "store": store.root, "ledger": "sqlite://", "actor": "anna@example.com"}
    spec = Spec.model_validate(
        {
            "stage": "convert",
            "project": "demo",
            "asset": f"conversion_{target}",
            "inputs": inputs.model_dump(mode="json"),
            "run": {**run, "base_path": folder},
        }
    )
    return stage.make(spec, store, Silent())


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


# -- what is written -------------------------------------------------------------------------------


def test_a_merged_model_opens_without_peft_and_says_what_the_adapter_says(adapter: Artifact) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    exact = make(adapter, "merged", "fp32")
    merged = AutoModelForCausalLM.from_pretrained(exact.path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(exact.path)
    shown = tokenizer.apply_chat_template(chat("What does E3 mean?"), add_generation_prompt=True)
    ids = torch.tensor([shown["input_ids"]])
    adapted = PeftModel.from_pretrained(bases.load_model(base()), str(adapter.path)).eval()
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-4)
    scores = exact.content["scores"]
    assert scores["changed"] == 0 and scores["loss"]["largest"] < 1e-4 and scores["records"] == 12
    assert scores["adapter"]["exact_match"] == scores["converted"]["exact_match"] > 0.9

    stored = make(adapter, "merged")  # as the base is stored
    assert stored.content["options"] == {"precision": "bf16"}
    assert {str(t.dtype) for t in tensors(stored.path).values()} == {"torch.bfloat16"}
    assert stored.content["experiment"] is False
    assert stored.attestation["tokens_per_second"]["converted"] > 0
    said = (stored.path / "manifest.json").read_text("utf-8") + (stored.path / "config.json").read_text(
        "utf-8"
    )
    assert str(store_of(adapter).root) not in said and "transformers_version" not in said
    assert make(adapter, "merged", threshold=0.5).digest == stored.digest, (
        "a threshold judges, it makes nothing"
    )


def test_a_gguf_file_holds_all_that_it_takes_to_answer(adapter: Artifact) -> None:
    import numpy as np
    from gguf import GGUFReader

    from ftaas_pipelines.conversion import gguf_file

    made = make(adapter, "gguf", "fp32")
    assert [*made.manifest["files"]] == ["model.gguf"]
    scores = made.content["scores"]
    assert scores["changed"] == 0 and scores["logits"]["largest"] < 1e-4 and scores["loss"]["largest"] < 1e-4

    own, read = bases.load_tokenizer(base()), gguf_file.load(made.path).tokenizer
    for text in ("a  12 b   345\n\n 7é 日本 it's <|end|>\t1,000.50", "Pump 7 of unit 1041 runs hot."):
        assert read(text)["input_ids"] == own(text)["input_ids"]
    turns = chat("Is E1 bad?", "Yes.", "And E2?")
    assert templates.prompt_text(read, turns) == templates.prompt_text(own, turns)

    reader = GGUFReader(made.path / "model.gguf")
    assert "generation" not in str(reader.fields["tokenizer.chat_template"].contents()).replace(
        "add_generation_prompt", ""
    ), "llama.cpp's Jinja knows no such tag"
    names = {tensor.name: tensor for tensor in reader.tensors}
    assert names["blk.0.attn_norm.weight"].tensor_type.name == "F32" and "output.weight" in names

    small = make(adapter, "gguf", "q8_0", threshold=0.2)
    assert small.content["scores"]["bytes"]["converted"] < 0.3 * scores["bytes"]["converted"]
    kinds = {t.tensor_type.name for t in GGUFReader(small.path / "model.gguf").tensors}
    assert kinds == {"Q8_0", "F32"}
    assert np.isfinite(small.content["scores"]["logits"]["largest"])


@pytest.mark.slow
def test_an_onnx_graph_answers_step_by_step_from_its_cache(adapter: Artifact) -> None:
    import numpy as np
    import onnxruntime

    from ftaas_pipelines.inference.decoding import Model

    made = make(adapter, "onnx")
    scores = made.content["scores"]
    assert scores["changed"] == 0 and scores["logits"]["largest"] < 1e-3
    raw = (made.path / "model.onnx").read_bytes()
    assert b"site-packages" not in raw and b'File "' not in raw, "it says where it was made"

    session = onnxruntime.InferenceSession(made.path / "model.onnx", providers=["CPUExecutionProvider"])
    past = {
        i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32)
        for i in session.get_inputs()
        if i.name.startswith("past_key_values.")
    }
    question = chat("What does fault E3 of unit 1001 mean?")
    tokenizer = bases.load_tokenizer(made.path)
    ids, answer = templates.prompt_ids(tokenizer, question, "causal"), list[int]()
    new, seen = ids, 0
    while len(answer) < 24:
        total = seen + len(new)
        feed = {
            "input_ids": np.array([new]),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(seen, total)[None],
            **past,
        }
        logits, *present = session.run(None, feed)
        assert all(kept.shape[2] == total for kept in present), "the cache grows by what was shown"
        past, seen = dict(zip(past, present, strict=True)), total
        token = int(logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        answer.append(token)
        new = [token]
    [expected] = Model(base(), {"a": adapter.path}).generate([question], "a", max_new_tokens=24)
    assert answer == expected.token_ids and tokenizer.decode(answer) == expected.text

    eighth = make(adapter, "onnx", "int8", threshold=0.5).content["scores"]
    assert eighth["bytes"]["converted"] < 0.4 * scores["bytes"]["converted"]
    assert eighth["loss"]["largest"] > scores["loss"]["largest"] and eighth["converted"]["exact_match"] > 0.7


@pytest.mark.parametrize(("target", "dtype"), [("int8", "int8"), ("int4", "uint8")])
def test_quantised_weights_are_saved_and_asked_from_the_disk(
    adapter: Artifact, target: str, dtype: str
) -> None:
    made = make(adapter, target, threshold=0.2)
    kept = tensors(made.path)
    assert str(kept["model.layers.0.mlp.up_proj.weight"].dtype) == f"torch.{dtype}"
    assert str(kept["lm_head.weight"].dtype) == "torch.bfloat16"
    scores = made.content["scores"]
    assert scores["loss"]["largest"] > 0, "nothing was quantised"
    assert scores["converted"]["exact_match"] > 0.7
    assert scores["bytes"]["converted"] < scores["bytes"]["base"]
    assert make(adapter, target, threshold=0.2).digest == made.digest
    model = bases.load_model(made.path)
    assert model.config.quantization_config.quant_method == "bitsandbytes"


def test_pruning_reaches_the_sparsity_that_was_asked_for(adapter: Artifact) -> None:
    made = make(adapter, "pruned", sparsity=0.2, threshold=1.0)
    kept = tensors(made.path)
    linear = [t for name, t in kept.items() if name.endswith("_proj.weight")]
    zeros = sum(int((t == 0).sum()) for t in linear) / sum(t.numel() for t in linear)
    assert zeros == pytest.approx(0.2, abs=1e-3)
    assert made.content["options"]["sparsity_reached"] == pytest.approx(0.2, abs=1e-5)
    assert int((kept["lm_head.weight"] == 0).sum()) < 10, "the output layer is left alone"


# -- what is held against the adapter --------------------------------------------------------------


def test_a_conversion_that_answers_otherwise_is_refused_and_leaves_nothing(adapter: Artifact) -> None:
    store = store_of(adapter)
    before = {a.digest for a in store.all("conversion")}
    with pytest.raises(Refused, match=r"changes \d+ of 12 answers .*more than 2\.0%") as refused:
        make(adapter, "pruned", sparsity=0.9)
    said = [problem.what for problem in refused.value.problems]
    assert refused.value.exit_code == 3 and "lowers exact_match by" in said[1]
    assert "became" in refused.value.problems[0].got
    assert {a.digest for a in store.all("conversion")} == before
    assert not [*(store.root / "drafts").glob("*")]
    let_through = make(adapter, "pruned", sparsity=0.9, threshold=1.0).content["scores"]
    assert let_through["difference"]["value"] < -0.02 and let_through["changed"] > 1


def test_a_t5_experiment_is_converted_and_stays_an_experiment(t5_adapter: Artifact) -> None:
    import torch
    from transformers import AutoModelForSeq2SeqLM

    made = make(t5_adapter, "merged", "fp32")
    assert made.content["experiment"] is True and made.content["scores"]["changed"] == 0
    AutoModelForSeq2SeqLM.from_pretrained(made.path)
    eighth = make(t5_adapter, "int8", threshold=1.0)
    dtypes = {name: t.dtype for name, t in tensors(eighth.path).items()}
    assert dtypes["encoder.block.0.layer.0.SelfAttention.q.weight"] == torch.int8
    for target in ("gguf", "onnx"):
        with pytest.raises(InputInvalid, match=rf"{target} is not written for seq2seq.*can become merged"):
            make(t5_adapter, target)


def test_a_full_fine_tuning_passes_as_it_is(tmp_path: Path) -> None:
    whole = trained(tmp_path, CAUSAL, adapter=FullFineTuning(kind="full"), max_steps=2)
    made = make(whole, "merged")
    assert made.manifest["files"] == whole.manifest["files"]
    assert made.content["scores"]["changed"] == 0 and made.content["scores"]["bytes"]["base"] == 0


# -- what cannot be converted says so first --------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "family", "method", "config", "said"),
    [
        ("gguf", "causal", "sft", {"model_type": "qwen2"}, "it is no Llama.*written for Llama"),
        (
            "gguf",
            "causal",
            "sft",
            {"model_type": "llama", "rope_parameters": {"rope_type": "llama3"}},
            r"RoPE is scaled \(llama3\)",
        ),
        ("gguf", "causal", "sft", {"model_type": "llama", "attention_bias": True}, "biases"),
        (
            "onnx",
            "causal",
            "sft",
            {"model_type": "gemma3", "layer_types": ["sliding_attention", "full_attention"]},
            "layers of sliding_attention",
        ),
        ("merged", "causal", "reward", {"model_type": "llama"}, "method reward gives no answers"),
    ],
)
def test_what_cannot_be_converted_says_what_can(
    target: Any, family: str, method: str, config: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputInvalid, match=said):
        targets.check(target, family, method, config)


def test_options_that_do_not_fit_the_target_are_named() -> None:
    config = {"dtype": "bfloat16"}
    assert targets.resolve("pruned", None, None, config) == ("pruned", "bf16", 0.3)
    assert targets.resolve("gguf", None, None, config) == ("gguf", "fp16", 0.0)
    for wrong, said in (
        (("awq", None, None), "use one of merged, gguf"),
        (("onnx", "q8_0", None), "use fp32 or int8"),
        (("merged", None, 0.3), "only pruned takes a sparsity"),
        (("pruned", None, 1.0), "no share between 0 and 1"),
    ):
        with pytest.raises(InputInvalid, match=said):
            targets.resolve(*wrong, config)


def test_a_tokenizer_without_a_name_in_llama_cpp_is_refused() -> None:
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer: Any = bases.load_tokenizer(base())
    tokenizer.backend_tokenizer.pre_tokenizer = Whitespace()
    with pytest.raises(InputInvalid, match=r"Whitespace.*byte-level BPE that splits text like gpt-2, smollm"):
        gguf_tokenizer.vocabulary(tokenizer, 4096)


# -- the command line ------------------------------------------------------------------------------


@pytest.fixture
def at_home(adapter: Artifact, home: Path) -> Artifact:
    """The adapter in the store of this home."""
    shutil.copytree(store_of(adapter).root, home / "store", ignore=shutil.ignore_patterns("conversion"))
    shutil.rmtree(home / "store" / "index")
    return Store(home / "store").get(adapter.digest)


@pytest.mark.slow
def test_the_command_makes_the_same_bytes_and_shows_them(
    at_home: Artifact, adapter: Artifact, ftaas: Callable[..., Ran]
) -> None:
    """In a process of its own, with another hash seed: the digest that this process makes."""
    line = (
        "model",
        "convert",
        at_home.digest[:8],
        "--to",
        "gguf",
        "--precision",
        "q8_0",
        "--threshold",
        "0.2",
    )
    made = ftaas(*line, "--json", PYTHONHASHSEED="7")
    assert made.code == 0, made.stderr
    expected = make(adapter, "gguf", "q8_0", threshold=0.2)
    assert made.json["scores"]["bytes"] == expected.content["scores"]["bytes"]
    files = json.loads((Path(made.json["folder"]) / "manifest.json").read_text("utf-8"))["files"]
    assert files == expected.manifest["files"]
    assert "gguf answers 12 validation questions" in made.stderr
    again = ftaas(*line)
    assert again.code == 0 and "validation answers are the same" in again.stdout
    assert ftaas("model", "verify", made.json["conversion"]).code == 0

    refused = ftaas("model", "convert", at_home.digest, "--to", "pruned", "--sparsity", "0.9", "--json")
    assert refused.code == 3 and "answers" in refused.json["problems"][0]["what"]
    wrong = ftaas("model", "convert", at_home.digest, "--to", "gguf", "--base", str(base(T5)))
    assert wrong.code == 2 and "holds another base model" in wrong.stderr


def test_push_uploads_every_byte_and_no_secret(
    at_home: Artifact, home: Path, ftaas: Callable[..., Ran], t5_adapter: Artifact
) -> None:
    shutil.copytree(t5_adapter.path, home / "store" / "artifacts" / "adapter" / t5_adapter.digest)
    with hub(TOKEN) as server:
        # Without Xet, whose storage speaks a protocol of its own, the client uses Git LFS.
        where = {
            "HF_ENDPOINT": server.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
        }
        line = ("model", "push", at_home.digest, "--to", "acme/pumps")
        public = ftaas(*line, **where)
        assert public.code == 3 and "add --private" in public.stderr and not server.repos
        pushed = ftaas(*line, "--private", "--json", **where)
        assert pushed.code == 0, pushed.stderr
        repo = server.repos["acme/pumps"]
        assert pushed.json["commit"] == f"{server.url}/acme/pumps/commit/{COMMIT}" and repo["private"]
        for name in [*at_home.manifest["files"], "manifest.json"]:
            assert repo["files"].pop(name) == at_home.file(name).read_bytes()
        assert [*repo["files"]] == ["README.md"], "more was uploaded than the identity"
        assert at_home.digest in repo["files"]["README.md"].decode()

        wrong = ftaas(*line, "--private", **{**where, "HF_TOKEN": "hf_wrong_token"})
        assert wrong.code == 1 and "401" in wrong.stderr and "hf_wrong_token" not in wrong.stderr
        unset = ftaas(*line, "--private", "--token", "env:NOT_THERE", **where)
        assert unset.code == 2 and "env:NOT_THERE" in unset.stderr
        literal = ftaas(*line, "--private", "--token", TOKEN, **where)
        assert literal.code == 2 and TOKEN not in literal.stderr + literal.stdout
        tried = ftaas("model", "push", t5_adapter.digest, "--to", "acme/trial", "--private", **where)
        assert tried.code == 3 and "experiment" in tried.stderr and "acme/trial" not in server.repos
    said = "".join(ran.stdout + ran.stderr for ran in (public, pushed, wrong, unset, tried))
    entries = Ledger(f"sqlite:///{home}/ledger.db", home).entries("push")
    assert TOKEN not in said + str(entries)
    assert [(e.subject, e.body["to"], e.body["private"]) for e in entries] == [
        (at_home.digest, "acme/pumps", True)
    ]
