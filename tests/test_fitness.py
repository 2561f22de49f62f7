"""What does not fit together is told before a GPU is paid for: one clear error each, with what to do."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT
from preparing import write

from ftaas_pipelines.data import made, tables
from ftaas_pipelines.data.raw import readers
from ftaas_pipelines.data.rows import formats, records
from ftaas_pipelines.errors import FtaasError, InputInvalid, Problem, raise_all
from ftaas_pipelines.inference import bases
from ftaas_pipelines.projects.base_model import BaseModelRef
from ftaas_pipelines.projects.licences import Licences
from ftaas_pipelines.projects.recipe import Recipe
from ftaas_pipelines.training import data_facts, fitness
from ftaas_pipelines.training.base_facts import BaseFacts

CAUSAL, T5 = "embedded/tiny-causal", "embedded/tiny-t5"
TEACHER = {"kind": "distillation", "teacher": {"id": CAUSAL}}
GRPO = {"kind": "grpo", "rewards": [{"kind": "exact_match"}]}
RLOO = {"kind": "rloo", "rewards": [{"kind": "exact_match"}]}
CAUSAL_ONLY = ["pretrain", "dpo", "kto", "orpo", "reward", GRPO, RLOO, TEACHER]
Edit = Callable[[Path], Any]


def folder(id: str) -> Path:
    return bases.resolve(id, "main", Path())


def base(id: str = CAUSAL, at: Path | None = None, **more: Any) -> fitness.Base:
    where = at or folder(id)
    return fitness.Base(BaseModelRef(id=id), where, bases.family(where), **more)


def recipe(**values: Any) -> Recipe:
    return Recipe.model_validate({"name": "r", **values})


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """A copy of an embedded base, after some edits."""

    def copy(*edits: Edit, id: str = CAUSAL) -> Path:
        where = shutil.copytree(folder(id), tmp_path / "base")
        for edit in edits:
            edit(where)
        return where

    return copy


def replaced(name: str, *pairs: tuple[str, str]) -> Edit:
    """An edit that writes other words into a file of the base."""

    def edit(where: Path) -> None:
        text = (where / name).read_text("utf-8")
        for old, new in pairs:
            assert old in text
            text = text.replace(old, new)
        (where / name).write_text(text, "utf-8")

    return edit


def only(found: Sequence[Problem], *said: str, code: int = 2) -> Problem:
    """The one problem there is: what, where, got and do are all told, and it ends the command with `code`."""
    (problem,) = found
    assert all((problem.what, problem.where, problem.got, problem.do)), problem
    assert all(words in str(problem) for words in said), problem
    with pytest.raises(FtaasError) as caught:
        raise_all(found)
    assert caught.value.exit_code == code
    return problem


# -- recipe and base ---------------------------------------------------------------------------


def test_the_embedded_bases_fit_their_own_methods() -> None:
    """What every other test changes one thing of."""
    assert fitness.problems(recipe(), base()) == []
    assert fitness.problems(recipe(), base(T5)) == []
    assert fitness.problems(recipe(method="seq2seq"), base(T5)) == []
    for method in CAUSAL_ONLY:
        assert fitness.problems(recipe(method=method), base()) == [], method


@pytest.mark.parametrize("method", CAUSAL_ONLY, ids=str)
def test_a_t5_with_a_method_of_causal_bases(method: Any) -> None:
    made = recipe(method=method)
    only(
        fitness.problems(made, base(T5)),
        f"method {made.method.kind} needs a causal base",
        "recipes.r.method",
        T5,
        "use method seq2seq, or a base such as embedded/tiny-causal",
    )


def test_other_methods_on_other_bases() -> None:
    found = fitness.problems(recipe(method="seq2seq"), base())
    only(found, "method seq2seq needs an encoder-decoder base", CAUSAL, "use method sft", "embedded/tiny-t5")
    only(fitness.problems(recipe(method="vision"), base()), "needs a vision-language base", "use method sft")
    only(fitness.problems(recipe(method="vision"), base(T5)), "vision-language base", "use method seq2seq")
    packed = recipe(method={"kind": "sft", "packing": "bfd"})
    only(fitness.problems(packed, base(T5)), "packing needs a causal base", "method.packing", "leave it out")
    unpadded = recipe(method={"kind": "sft", "padding_free": True})
    only(fitness.problems(unpadded, base(T5)), "padding_free needs a causal base", "leave it out")


_END = ("{{- '<|end|>' -}}\n    {%- endgeneration", "{%- endgeneration")


def test_a_chat_template_without_an_end_token(edited: Callable[..., Path]) -> None:
    where = edited(replaced("chat_template.jinja", _END))
    found = fitness.problems(recipe(), base(at=where))
    only(found, "no end token after an answer", "chat_template.jinja", "<|end|>", "write {{ eos_token }}")
    for method in ("dpo", "kto", "orpo", GRPO):
        only(fitness.problems(recipe(method=method), base(at=where)), "no end token after an answer")
    assert fitness.problems(recipe(method="pretrain"), base(at=where)) == []  # no template around a text


def test_a_chat_template_that_ends_answers_with_another_token(edited: Callable[..., Path]) -> None:
    other = (_END[0], _END[0].replace("end|>", "system|>"))
    where = edited(replaced("chat_template.jinja", other))
    only(fitness.problems(recipe(), base(at=where)), "or set eos_token to <|system|>")
    # What generation stops at ends an answer, too.
    system = BaseFacts(where).tokens["<|system|>"]
    replaced("generation_config.json", ('"eos_token_id": 1', f'"eos_token_id": [1, {system}]'))(where)
    assert fitness.problems(recipe(), base(at=where)) == []


_LOOP = "{%- for message in messages -%}"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (("message['content'] or ''", "''"), "leaves the answer out"),
        ((_LOOP, "{{ raise_exception('no') }}" + _LOOP), "TemplateError: no"),
        (("{%- endfor -%}", ""), "cannot render"),
    ],
    ids=["no answer", "raises", "not closed"],
)
def test_a_chat_template_that_does_not_work(edited: Callable[..., Path], edit: Any, said: str) -> None:
    where = edited(replaced("chat_template.jinja", edit))
    only(fitness.problems(recipe(), base(at=where)), said)


def test_no_end_token_at_all(edited: Callable[..., Path]) -> None:
    gone = replaced("tokenizer_config.json", ('"eos_token": "<|end|>",', ""))
    at = [
        replaced(n, ('"eos_token_id": 1', '"eos_token_id": null'))
        for n in ("config.json", "generation_config.json")
    ]
    only(fitness.problems(recipe(), base(at=edited(gone, *at))), "no end token", "set eos_token there")


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (
            ["q_projj"],
            ["no module 'q_projj'", "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"],
        ),
        (["q_proj", "wi"], ["no module 'wi'", "q_proj, wi"]),
        (["q_proj", "lm_head"], ["the output layer takes no adapter", "lm_head"]),
        (["model.embed_tokens"], ["is an embedding", "embeddings: true"]),
        ("q_proj", ["pattern for whole module names", "[down_proj, gate_proj]"]),
        (r".*\.(q|v)_projj", ["pattern", "all-linear"]),
        (".*", ["the output layer takes no adapter"]),
        ("*", ["not a regular expression"]),
    ],
    ids=str,
)
def test_target_modules_that_are_not_there(targets: Any, said: list[str]) -> None:
    made = recipe(adapter={"target_modules": targets})
    only(fitness.problems(made, base()), *said, "recipes.r.adapter.target_modules")


def test_target_modules_that_are_there() -> None:
    for targets in ("all-linear", ["q_proj", "v_proj"], ["layers.0.mlp.up_proj"], r".*\.(q|v)_proj"):
        assert fitness.problems(recipe(adapter={"target_modules": targets}), base()) == []
    for targets in (["q", "v"], ["wi", "wo"], r"encoder\..*\.q"):
        assert fitness.problems(recipe(adapter={"target_modules": targets}), base(T5)) == []


@pytest.mark.parametrize("id", [CAUSAL, T5])
def test_the_headers_tell_the_linear_layers_that_torch_has(id: str) -> None:
    import torch

    model = bases.load_model(folder(id))
    linear = {
        n: (m.out_features, m.in_features) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)
    }
    linear.pop("lm_head")
    facts = BaseFacts(folder(id))
    assert facts.linears == linear
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    assert facts.rows == model.get_input_embeddings().weight.shape[0]


def test_a_tokenizer_that_does_not_fit_the_model(edited: Callable[..., Path], tmp_path: Path) -> None:
    def tokenizer_of(other: str) -> Edit:
        return lambda where: shutil.copy(folder(other) / "tokenizer.json", where)

    where = edited(tokenizer_of(CAUSAL), id=T5)
    found = fitness.problems(recipe(), base("other/name", where))
    only(
        found,
        "does not fit the model: 2032 of its tokens have no embedding",
        "ids up to 4095, 2064 embeddings",
    )
    shutil.rmtree(where)
    where = edited(tokenizer_of(T5))
    only(
        fitness.problems(recipe(method="pretrain"), base("other/name", where)), "2064 tokens, 4096 embeddings"
    )
    shutil.rmtree(where)
    where = edited(replaced("config.json", ('"eos_token_id": 1', '"eos_token_id": 9999')))
    only(fitness.problems(recipe(), base("other/name", where)), "no token of the id that the model ends with")


def test_embeddings_that_no_adapter_keeps() -> None:
    made = recipe(adapter={"embeddings": True})
    found = fitness.problems(made, base(T5))
    only(found, "ties its embeddings", "recipes.r.adapter.embeddings", T5, "leave embeddings out")
    assert fitness.problems(made, base()) == []


def test_an_adapter_of_another_base(tmp_path: Path) -> None:
    other, here = "a" * 64, bases.digest(folder(CAUSAL))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({"base_model_name_or_path": f"sha256:{other}"}), "utf-8")
    made = recipe(method="dpo", init_from="sft")
    found = fitness.problems(made, base(digest=here), init_from=tmp_path)
    only(found, "trained on another base", "recipes.r.init_from", other[:12], here[:12])
    file.write_text(json.dumps({"base_model_name_or_path": f"sha256:{here}"}), "utf-8")
    assert fitness.problems(made, base(digest=here), init_from=tmp_path) == []


def test_a_teacher_of_another_vocabulary(edited: Callable[..., Path]) -> None:
    made = recipe(method=TEACHER)
    assert fitness.problems(made, base(), teacher=base()) == []
    where = edited(replaced("tokenizer.json", ('"<|tool|>"', '"<|other|>"')))
    found = fitness.problems(made, base(), teacher=base("a/teacher", where))
    only(found, "do not share a vocabulary", "recipes.r.method.teacher", "a/teacher")
    only(fitness.problems(made, base(), teacher=base(T5)), "a teacher must be a causal base", T5)
    taught = recipe(method={**TEACHER, "teacher_recipe": "sft"})
    assert fitness.problems(taught, base(), teacher=base()) == []
    found = fitness.problems(taught, base(), teacher=base("a/teacher", folder(CAUSAL)))
    only(found, "the teacher is another", "recipes.r.method.teacher_recipe", "sft on", "a/teacher")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_of_the_base_that_is_broken(edited: Callable[..., Path], name: str) -> None:
    where = edited(lambda at: (at / name).write_bytes((at / name).read_bytes()[:99]))
    problem = only(fitness.problems(recipe(adapter={"target_modules": ["q_proj"]}), base(at=where)), name)
    assert problem.where.endswith(name)


# -- licences ----------------------------------------------------------------------------------

FORBID = Licences(forbid=["cc-by-nc*", "qwen-research"])


@pytest.mark.parametrize(
    ("ref", "card", "said"),
    [
        ({"id": "a/b", "licence": "CC BY-NC 4.0"}, "", "CC BY-NC 4.0, says the project"),
        ({"id": "Qwen/Qwen2.5-3B-Instruct"}, "", "qwen-research, says the catalogue"),
        ({"id": "a/b"}, "---\nlicense: cc-by-nc-4.0\n---\n# A model\n", "cc-by-nc-4.0, says the README"),
        ({"id": "a/b"}, "---\nlicense: other\nlicense_name: qwen-research\n---\n", "says the README"),
        # Nobody talks a forbidden licence away.
        ({"id": "a/b", "licence": "MIT"}, "---\nlicense: cc-by-nc-sa-4.0\n---\n", "says the README"),
    ],
)
def test_a_licence_that_the_policy_forbids(
    edited: Callable[..., Path], ref: dict[str, str], card: str, said: str
) -> None:
    where = edited(lambda at: (at / "README.md").write_text(card, "utf-8"))
    one = fitness.Base(BaseModelRef(**ref), where, "causal", policy=FORBID)
    only(fitness.problems(recipe(), one), "the platform policy forbids", "base_model.licence", said, code=3)
    assert fitness.problems(recipe(), fitness.Base(BaseModelRef(**ref), where, "causal")) == []


def test_licences_that_are_not_among_the_allowed_or_not_known(edited: Callable[..., Path]) -> None:
    where, strict = edited(), Licences(allow=["apache-2.0", "mit"])
    of = {"a/b": "", "a/c": "Apache 2.0", "a/d": "gpl-3.0"}
    found = {
        id: fitness.problems(
            recipe(), fitness.Base(BaseModelRef(id=id, licence=licence), where, "causal", project=strict)
        )
        for id, licence in of.items()
    }
    assert found["a/b"] == found["a/c"] == []  # unknown is accepted until a policy says otherwise
    only(found["a/d"], "the project allows only apache-2.0, mit", "gpl-3.0", code=3)
    unknown = fitness.Base(BaseModelRef(id="a/b"), where, "causal", policy=Licences(unknown="refuse"))
    only(
        fitness.problems(recipe(), unknown),
        "unknown licence",
        "none is stated",
        "state base_model.licence",
        code=3,
    )


def test_a_forbidden_licence_ends_the_command_with_3(
    project_factory: Callable[..., Path], ftaas: Callable[..., Any], home: Path
) -> None:
    path = project_factory("codes", text=PROJECT.format(name="codes", title="codes").replace(
        "id: embedded/tiny-causal", "id: embedded/tiny-causal\n  licence: cc-by-nc-4.0"))  # fmt: skip
    policy = home.parent / "policy" / "platform.yaml"
    policy.write_text(policy.read_text("utf-8") + "licences: {forbid: [cc-by-nc*]}\n", "utf-8")
    for command in (("project", "validate", "codes"), ("run", "codes")):
        done = ftaas(*command, "--json")
        assert done.code == 3, done.stdout + done.stderr
        (problem,) = done.json["problems"]
        assert problem["what"] == "the platform policy forbids cc-by-nc*"
        assert problem["where"].startswith(f"{path}:1") and problem["got"] == "cc-by-nc-4.0" and problem["do"]
    # What only the catalogue knows is refused, too; beside a mistake it is one problem more.
    policy.write_text(policy.read_text("utf-8").replace("cc-by-nc*", "PSF-2.0"), "utf-8")
    path.write_text(path.read_text("utf-8").replace("licence: cc-by-nc-4.0", 'licence: ""'), "utf-8")
    done = ftaas("project", "validate", "--json")
    assert done.code == 3 and "says the catalogue" in done.json["problems"][0]["got"]
    path.write_text(path.read_text("utf-8") + "    method: vision\n", "utf-8")
    done = ftaas("project", "validate", "--json")
    assert done.code == 2 and len(done.json["problems"]) == 2


# -- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("learning_rate: 0.003", "learning_rate: 10", ["training.learning_rate", "less than 1", "10"]),
        (
            "- name: lora",
            "- name: lora\n    adapter: {r: 0}",
            ["adapter", "r'", "greater than or equal to 1", "0"],
        ),
        (
            "- name: lora",
            "- name: lora\n    adapter: {target_modules: [q_projj]}",
            ["q_projj", "q_proj, up_proj"],
        ),
        (
            "- name: lora",
            "- name: lora\n    method: seq2seq",
            ["needs an encoder-decoder base", "tiny-causal"],
        ),
        (
            "- name: lora",
            "- name: whole\n    adapter: {kind: full}\n"
            "  - name: lora\n    init_from: whole\n    adapter: {r: 4}",
            ["cannot go on from a model that was trained whole", "after whole"],
        ),
    ],
    ids=["learning rate of 10", "rank 0", "no such module", "T5 method", "LoRA on a whole model"],
)
def test_a_project_is_told_before_anything_runs(
    project_factory: Callable[..., Path], ftaas: Callable[..., Any], before: str, after: str, said: list[str]
) -> None:
    text = PROJECT.format(name="codes", title="codes")
    assert before in text
    path = project_factory("codes", text=text.replace(before, after))
    done = ftaas("project", "validate", "codes", "--json")
    assert done.code == 2, done.stdout + done.stderr
    (problem,) = done.json["problems"]
    assert problem["where"].startswith(str(path)) and problem["got"] and problem["do"]
    assert all(words in json.dumps(problem) for words in said), problem


def test_a_value_that_an_experiment_sets_is_told_as_well() -> None:
    from ftaas_pipelines.cli.train import changed_recipe

    for change, said in (
        ("training.learning_rate=10", "less than 1"),
        ("adapter.r=0", "greater than or equal to 1"),
    ):
        with pytest.raises(InputInvalid) as caught:
            changed_recipe(recipe(), [change])
        only(caught.value.problems, said, "--set", change.partition("=")[2])


# -- data --------------------------------------------------------------------------------------


def splits(at: Path, rows: Sequence[dict[str, Any]], **columns: str) -> Path:
    """A splits folder whose training split holds these raw rows, read as `prepare` reads them."""
    file = write(at / "rows.jsonl", rows)
    looked = readers.look(file)
    layout = formats.resolve(looked.columns, file, None, columns, looked.rows)
    read = records.reader(layout, "rows", None, False, None, ())
    table = sorted((made.row(read(row)) for row in looked.rows), key=lambda row: row["record_id"])
    tables.write_rows(at / "train.parquet", table, tables.RECORDS)
    return at


PAIRS = [{"prompt": f"What is {i}?", "completion": f"It is number {i}, of course."} for i in range(12)]
LABELS = [{"prompt": f"Sort {i}.", "completion": ("red", "blue")[i % 2]} for i in range(12)]
PREFERENCES = [{"prompt": f"Ask {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(4)]
THUMBS = [{"prompt": f"Ask {i}", "completion": f"answer {i}", "label": bool(i % 2)} for i in range(4)]
CHECKED = [{"question": f"{i} + 1?", "answer": f"{i + 1}", "expected": f"{i + 1}"} for i in range(4)]
WORKED = [{"question": f"{i} + 1?", "answer": f"{i} and one more.\n#### {i + 1}"} for i in range(4)]
TEXTS = [{"text": f"Chapter {i} of the manual."} for i in range(4)]


@pytest.mark.parametrize(
    ("method", "rows"),
    [
        ("sft", PAIRS),
        ("sft", PREFERENCES),
        ("sft", WORKED),
        ("sft", TEXTS),
        ("pretrain", TEXTS),
        ("dpo", PREFERENCES),
        ("orpo", PREFERENCES),
        ("reward", PREFERENCES),
        ("kto", THUMBS),
        ("kto", PREFERENCES),
        (GRPO, CHECKED),
        (RLOO, PAIRS),
        (TEACHER, PAIRS),
        ("classification", LABELS),
        ("seq2seq", PAIRS),
    ],
    ids=str,
)
def test_data_that_fits(tmp_path: Path, method: Any, rows: Sequence[dict[str, Any]]) -> None:
    assert fitness.data_problems(recipe(method=method), splits(tmp_path, rows)) == []


@pytest.mark.parametrize(
    ("method", "rows", "said"),
    [
        ("dpo", PAIRS, ["method dpo learns from preferences", "12 text_pair", "use method sft"]),
        ("orpo", PAIRS, ["method orpo learns from preferences", "12 text_pair"]),
        ("reward", THUMBS, ["method reward learns from preferences", "4 labelled", "use method kto"]),
        ("kto", PAIRS, ["method kto learns from labels", "12 text_pair"]),
        ("kto", [{**row, "label": True} for row in THUMBS], ["every label is good", "4 good, 0 bad"]),
        ("sft", CHECKED, ["the data is prompts alone", "4 prompt", "use method grpo"]),
        ("sft", THUMBS, ["4 labelled", "use method kto"]),
        ("pretrain", PAIRS, ["method pretrain learns from plain texts", "use method sft"]),
        (GRPO, TEXTS, ["method grpo learns from questions", "4 text", "use method pretrain"]),
        ("seq2seq", TEXTS, ["method seq2seq learns from questions", "4 text"]),
        ("vision", PAIRS, ["no record shows an image", "12 text_pair", "use method sft"]),
        ("classification", PAIRS, ["free text", "12 different answers in 12 records", "use method sft"]),
        ("classification", LABELS[::2], ["the same answer", "1 different answers in 6 records"]),
        (
            {"kind": "classification", "max_labels": 2},
            [*LABELS, {"prompt": "a", "completion": "green"}],
            ["more labels than max_labels=2", "3 different answers"],
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_data_that_does_not_fit(
    tmp_path: Path, method: Any, rows: Sequence[dict[str, Any]], said: list[str]
) -> None:
    only(fitness.data_problems(recipe(method=method), splits(tmp_path, rows)), *said, "recipes.r.method")


def test_a_t5_learns_no_plain_text_by_any_name(tmp_path: Path) -> None:
    where = splits(tmp_path, TEXTS)
    only(fitness.data_problems(recipe(), where, family="seq2seq"), "method seq2seq learns from questions")


def test_images_and_kinds_are_counted(tmp_path: Path) -> None:
    seen = {"role": "user", "content": "What is it?", "images": ["a.png"]}
    rows = [{"messages": [seen, {"role": "assistant", "content": "A pump."}]}] * 2
    rows += [
        {"messages": [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "A pump. "}]}
    ]
    facts = data_facts.of_split(splits(tmp_path, rows))
    assert (facts.records, facts.images, facts.answers, dict(facts.kinds)) == (3, 2, 1, {"text_pair": 3})
    assert fitness.data_problems(recipe(method="vision"), tmp_path) == []
    assert data_facts.of_split(tmp_path, at_most=1).seen == 1


def test_a_file_of_prompts_alone_is_no_dataset(tmp_path: Path) -> None:
    """As `prepare` reads it, long before anything is trained."""
    with pytest.raises(InputInvalid) as caught:
        splits(tmp_path, [{"prompt": f"Say what X{i} means."} for i in range(30)])
    only(caught.value.problems, "rows.jsonl:1", "the columns fit no known format (got prompt)", "completion")


def test_data_of_several_kinds_is_counted(tmp_path: Path) -> None:
    """What one file cannot hold, several sources do."""
    kinds = {"preference": 3, "text_pair": 2}
    facts = data_facts.DataFacts(records=5, seen=5, kinds=kinds)
    found = fitness.unfit(recipe(method="dpo").method, facts, "recipes.r.method")
    only(
        found, "2 of 5 records are none", "3 preference, 2 text_pair", "leave the sources of other kinds out"
    )
    assert fitness.unfit(recipe().method, facts, "recipes.r.method") == []
    seen = data_facts.DataFacts(records=5, seen=5, kinds={"text_pair": 5}, images=2)
    only(
        fitness.unfit(recipe().method, seen, "here"),
        "sees no images, and 2 of 5 records",
        "use method vision",
    )
