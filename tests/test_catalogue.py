"""The catalogue tells the truth about the platform it advises on, and its advice can be followed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from conftest import PROJECT, ROOT
from test_fitness import splits

from ftaas_pipelines import settings
from ftaas_pipelines.errors import InputInvalid, Refused
from ftaas_pipelines.inference import bases as base_models
from ftaas_pipelines.projects.licences import Licences
from ftaas_pipelines.projects.method import Method
from ftaas_pipelines.projects.project import Project
from ftaas_pipelines.projects.recipe import Recipe
from ftaas_pipelines.store import Store
from ftaas_pipelines.training import fitness
from ftaas_pipelines.training.base_facts import BaseFacts
from ftaas_pipelines.training.catalogue import advice, bases, courses, estimate
from ftaas_pipelines.training.catalogue.advice import Advice, Question
from ftaas_pipelines.training.catalogue.shapes import DescribedBase
from ftaas_pipelines.training.catalogue.techniques import Technique, technique, techniques
from ftaas_pipelines.training.data_facts import DataFacts, Lengths
from ftaas_pipelines.training.planning import memory
from ftaas_pipelines.training.planning.duration import Pace

METHODS = {union.model_fields["kind"].annotation: union for union in get_args(get_args(Method)[0])}
KINDS = {get_args(kind)[0] for kind in METHODS}
H100 = estimate.Rig("h100", 1, 8, 79.0, 6.88, Pace(3.5e14, float("inf"), 4e-6, 3e12))
L4 = estimate.Rig("l4", 1, 8, 22.0, 0.81, Pace(4e13, float("inf"), 4e-6, 3e11))
T4 = estimate.Rig("t4", 1, 8, 15.0, 0.53, Pace(2e13, float("inf"), 4e-6, 3e11))
LAPTOP = estimate.Rig("laptop", 0, 4, 15.0, 0.0, Pace(6e10, 1e10, 1e-6, 1e10))

# How a recipe shows that it uses a technique.
USES: dict[str, Callable[[Recipe], Any]] = {
    **{kind: lambda r, kind=kind: r.method.kind == kind for kind in KINDS},
    "lora": lambda r: r.adapter.kind == "lora" and r.adapter.target_modules == "all-linear",
    "full": lambda r: r.adapter.kind == "full",
    "qlora": lambda r: getattr(r.adapter, "quantise", None) == "nf4",
    "int8": lambda r: getattr(r.adapter, "quantise", None) == "int8",
    "dora": lambda r: getattr(r.adapter, "dora", False),
    "rslora": lambda r: getattr(r.adapter, "rslora", False),
    "pissa": lambda r: getattr(r.adapter, "init", "") == "pissa",
    "olora": lambda r: getattr(r.adapter, "init", "") == "olora",
    "lora+": lambda r: getattr(r.adapter, "plus_ratio", None),
    "embeddings": lambda r: getattr(r.adapter, "embeddings", False),
    "packing": lambda r: getattr(r.method, "packing", "none") != "none",
    "padding_free": lambda r: getattr(r.method, "padding_free", False),
    "gradient_checkpointing": lambda r: r.training.gradient_checkpointing,
    "neftune": lambda r: r.training.neftune_alpha,
    "sweep": lambda r: r.sweep,
    "early_stopping": lambda r: r.training.early_stopping,
}


def project(**values: Any) -> Project:
    return Project.model_validate(yaml.safe_load(PROJECT.format(name="p", title="p")) | values)


# -- techniques --------------------------------------------------------------------------------


def test_every_technique_of_the_contract_is_told_and_no_other() -> None:
    assert set(techniques()) == set(USES)
    assert {t.name for t in techniques().values() if t.kind == "method"} == KINDS
    for method in KINDS:
        assert technique(method).families and technique(method).records, method


@pytest.mark.parametrize("one", techniques().values(), ids=lambda t: t.name)
def test_the_yaml_of_a_technique_is_valid_and_uses_it(one: Technique) -> None:
    project(recipes=yaml.safe_load(one.recipes))  # as part of a project: what it builds on stands before it
    assert any(USES[one.name](recipe) for recipe in one.example)
    last = next(r for r in reversed(one.example) if USES[one.name](r))
    family = one.families[0] if one.families else "causal"
    assert family in technique(last.method.kind).families


COUNTED = [t for t in techniques().values() if not t.families or "causal" in t.families]


@pytest.mark.parametrize("one", COUNTED, ids=lambda t: t.name)
def test_what_a_technique_is_said_to_take_is_what_is_planned(one: Technique) -> None:
    """Counted anew by the planner, on Llama 3.1 8B."""
    base = bases.get("meta-llama/Llama-3.1-8B-Instruct")

    def fixed(recipe: Recipe) -> tuple[float, Any]:
        job = estimate.job(base, recipe, 1000, H100)
        held = memory.peak(job, 256)
        return held.weights + held.gradients + held.optimizer, job

    recipe = next(r for r in reversed(one.example) if USES[one.name](r))
    lora, _ = fixed(Recipe.model_validate({"name": "r", "adapter": {"r": 16}}))
    taken, job = fixed(recipe)
    if one.memory_times is not None:
        assert taken / lora == pytest.approx(one.memory_times, rel=0.15)
    if one.compute_times is not None:
        passes = (3 if job.whole else 2) + job.forward_only + job.training.gradient_checkpointing
        counted = job.sequences * passes / 2
        if job.online:  # each answer is sampled, too: one forward pass
            counted = job.method.generations * (counted + 0.5)
        assert counted == pytest.approx(one.compute_times)


def test_a_technique_is_found_by_the_name_that_people_write() -> None:
    for name, found in {
        "padding-free": "padding_free",
        "LoRA+": "lora+",
        "lora_plus": "lora+",
        "DPO": "dpo",
    }.items():
        assert technique(name).name == found
    with pytest.raises(InputInvalid, match="did you mean 'orpo'"):
        technique("orp")


# -- bases -------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", bases.open_bases(), ids=lambda b: b.id)
def test_the_facts_of_a_base_agree_with_each_other(base: bases.Base) -> None:
    """Its shapes, told apart from its size, come to its size: a wrong figure in either is seen."""
    counted = DescribedBase(Path(), base.config).parameters
    if base.family == "vision":  # the configuration is that of the language model alone
        assert 0.5 * base.parameters < counted < base.parameters
    else:
        assert counted == pytest.approx(base.parameters, rel=0.001)
    table = estimate.memory_table(base)
    assert table["lora"] < table["full"] and table["qlora"] < 1.1 * table["lora"]
    assert table["lora"] > 2 * base.parameters / 2**30  # the weights alone in bf16
    assert base_models._HUB_ID.fullmatch(base.id) and base.context and base.licence


def test_embedded_bases_are_read_off_their_folders() -> None:
    known = {base.id: base for base in bases.embedded_bases()}
    assert list(known) == base_models.embedded()
    causal, t5 = known["embedded/tiny-causal"], known["embedded/tiny-t5"]
    assert (causal.parameters, causal.context, causal.family, causal.chat_template) == (
        1836160,
        1024,
        "causal",
        True,
    )
    assert (t5.parameters, t5.context, t5.family, t5.chat_template) == (1216512, 512, "seq2seq", False)
    assert causal.licence == t5.licence == "PSF-2.0" and "no general language ability" in causal.not_for


def test_shapes_that_are_told_are_those_of_the_weights() -> None:
    """What stands for a base that is not here is held against the two that are."""
    for id in ("embedded/tiny-causal", "embedded/tiny-t5"):
        here = BaseFacts(bases.folder(id))
        assert DescribedBase(Path(), here.config).linears == here.linears


def test_bases_are_listed_with_what_one_chooses_by(ftaas: Callable[..., Any]) -> None:
    rows = {row["id"]: row for row in ftaas("model", "bases", "--json").json["bases"]}
    here = rows["embedded/tiny-causal"]
    assert Path(here["path"]).is_dir() and here["bytes"] > 1e6
    assert here["digest"] == base_models.digest(Path(here["path"]))
    llama = rows["meta-llama/Llama-3.1-8B-Instruct"]
    assert llama["path"] is None and llama["licence"] == "llama3.1" and llama["context"] == 131072
    assert set(llama["memory_gib"]) == {"lora", "qlora", "full"} and llama["chat_template"] is True
    said = ftaas("model", "bases").stdout
    assert "qwen-research" in said and "8.0 billion" in said and here["path"] in said


# -- advice ------------------------------------------------------------------------------------

SHORT = Lengths(200, 600, 1500)
DATA: dict[str, dict[str, Any]] = {
    "pairs": {"kinds": {"text_pair": 4000}, "answers": 3900},
    "labels": {"kinds": {"text_pair": 4000}, "answers": 77, "answer_characters": Lengths(14, 30, 44)},
    "sentences": {"kinds": {"text_pair": 4000}, "answers": 3900, "prompt_characters": Lengths(60, 120, 200),
                  "answer_characters": Lengths(60, 120, 200)},
    "preferences": {"kinds": {"preference": 4000}, "answers": 3900},
    "thumbs": {"kinds": {"labelled": 4000}, "answers": 3900, "good": 3000, "bad": 1000},
    "checked": {"kinds": {"prompt": 4000}, "answers": 900, "worked": 4000, "numbers": 4000},
    "bare": {"kinds": {"prompt": 4000}, "answers": 900, "numbers": 4000},
    "texts": {"kinds": {"text": 4000}, "answers": 4000},
    "images": {"kinds": {"conversation": 4000}, "answers": 3000, "images": 4000},
}  # fmt: skip


def facts(name: str, **more: Any) -> DataFacts:
    usual = {"records": 4000, "seen": 4000, "prompt_characters": SHORT, "answer_characters": SHORT}
    return DataFacts(**{**usual, **DATA[name], **more})


def advised(name: str, task: str = "qa", rig: estimate.Rig = H100, **more: Any) -> Advice:
    known = bases.all_bases()
    found = advice.advise(Question(facts(name), task, rig, **more), known)
    assert found == advice.advise(Question(facts(name), task, rig, **more), known), "the same each time"
    return found


@pytest.mark.parametrize(
    ("data", "task", "methods"),
    [
        ("pairs", "qa", ("sft",)),
        ("labels", "classification", ("classification",)),
        ("labels", "qa", ("sft",)),
        ("pairs", "classification", ("sft",)),  # free text, whatever the task is called
        ("sentences", "correction", ("seq2seq",)),
        ("preferences", "chat", ("sft", "dpo")),
        ("thumbs", "chat", ("kto",)),
        ("checked", "qa", ("sft", "grpo")),
        ("bare", "qa", ("grpo",)),
        ("texts", "qa", ("pretrain",)),
        ("images", "qa", ("vision",)),
    ],
)
def test_advice_can_be_followed(data: str, task: str, methods: tuple[str, ...]) -> None:
    """What is proposed is a valid project that the data fits, within memory; all else has its reason."""
    found = advised(data, task, minutes=3000.0)
    one = found.proposal
    assert one.course.methods == methods
    made = project(recipes=one.recipes, base_model={"id": one.base.id})
    for recipe, kind in zip(made.recipes, methods, strict=True):
        assert recipe.method.kind == kind and one.base.family in technique(kind).families
        assert fitness.unfit(recipe.method, facts(data), "") == []
        assert recipe.training.max_seq_tokens <= (one.base.context or 1e9)
    assert [r.init_from for r in made.recipes] == [None, *methods[:-1]]
    assert one.memory_gib < 79 and one.minutes <= 3000
    why = dict(found.left_out)
    assert KINDS - set(methods) <= set(why) and all(why.values())
    assert any(one.base.id in reason for reason in found.reasons)


def test_the_base_is_the_largest_that_the_task_asks_for_and_the_budget_pays() -> None:
    assert advised("pairs", rig=H100).proposal.base.id == "Qwen/Qwen2.5-7B-Instruct"
    assert advised("pairs", rig=L4).proposal.base.id == "Qwen/Qwen2.5-7B-Instruct"
    small = advised("pairs", rig=T4).proposal  # in bf16 it does not fit any more
    assert (small.base.id, small.variant.named) == (
        "Qwen/Qwen2.5-7B-Instruct",
        "QLoRA with gradient checkpointing",
    )
    cheap = advised("pairs", rig=L4, usd=0.5)
    assert cheap.proposal.usd <= 0.5 and cheap.proposal.base.parameters < 5e9
    assert "costs about" in dict(cheap.left_out)["Qwen/Qwen2.5-7B-Instruct"]
    quick = advised("pairs", rig=L4, minutes=5.0)
    assert quick.proposal.minutes <= 5 and "takes about" in dict(quick.left_out)["Qwen/Qwen2.5-7B-Instruct"]
    assert advised("labels", "classification").proposal.base.parameters <= 2e9  # a label needs no more


def test_a_laptop_is_offered_what_it_can_do() -> None:
    found = advised("pairs", rig=LAPTOP, minutes=60.0)
    assert found.proposal.base.embedded and "for trying the platform" in found.reasons[-1]
    assert "hours of 60 minutes" in dict(found.left_out)["HuggingFaceTB/SmolLM2-135M-Instruct"]


def test_a_licence_that_is_not_allowed_is_not_proposed() -> None:
    research, free = bases.get("Qwen/Qwen2.5-3B-Instruct"), bases.get("Qwen/Qwen2.5-0.5B-Instruct")
    found = advice.advise(Question(facts("pairs"), "qa", H100), [research, free])
    assert found.proposal.base == free, (
        "what may not be used in business is proposed to nobody who does not allow it"
    )
    found = advice.advise(Question(facts("pairs"), "qa", H100), [research, bases.get("embedded/tiny-causal")])
    assert "non-commercial use" in dict(found.left_out)[research.id]
    found = advised("pairs", licences=[Licences(forbid=["apache-2.0"]), Licences(forbid=["gemma"])])
    assert found.proposal.base.licence.startswith("llama")
    assert "forbids apache-2.0" in dict(found.left_out)["Qwen/Qwen2.5-7B-Instruct"]
    for one in [Licences(allow=["qwen-research"])], [Licences(allow=["qwen*"])]:
        assert advised("pairs", licences=one).proposal.base.licence == "qwen-research"
    with pytest.raises(Refused, match="no base of the catalogue may be used"):
        advised("pairs", licences=[Licences(allow=["nothing"])])


def test_a_shorter_course_is_taken_where_the_long_one_costs_too_much() -> None:
    long = advised("preferences").proposal
    for course, methods in zip(
        courses.courses(facts("preferences"), "qa")[1:], (("orpo",), ("sft",)), strict=True
    ):
        assert course.methods == methods
    short = advised("checked", rig=L4, usd=1.0).proposal
    assert long.course.methods == ("sft", "dpo") and short.course.methods in (("sft", "grpo"), ("sft",))
    assert short.usd <= 1.0


def test_nothing_that_fits_is_said_with_what_would() -> None:
    with pytest.raises(Refused) as caught:
        advised("pairs", rig=LAPTOP, minutes=0.1)
    assert caught.value.exit_code == 3
    (problem,) = caught.value.problems
    assert "a minute" in problem.got and "the nearest is embedded/tiny-causal by LoRA" in problem.do
    with pytest.raises(InputInvalid, match="got no records"):
        advice.advise(Question(DataFacts(), "qa", H100), bases.all_bases())


def test_data_of_several_kinds() -> None:
    """Every method learns from all of the data or not at all: advice keeps to that."""
    mixed = facts("preferences", kinds={"preference": 3000, "text_pair": 1000})
    assert advice.advise(Question(mixed, "qa", H100), bases.all_bases()).proposal.course.methods == ("sft",)
    with pytest.raises(InputInvalid, match="no method learns from all of the data"):
        advice.advise(
            Question(facts("thumbs", kinds={"labelled": 3000, "text": 1000}), "qa", H100), bases.all_bases()
        )


def test_records_longer_than_a_base_reads_rule_it_out() -> None:
    long = facts("pairs", prompt_characters=Lengths(30_000, 60_000, 90_000))
    short, reads = bases.get("allenai/OLMo-2-1124-7B-Instruct"), bases.get("Qwen/Qwen2.5-1.5B-Instruct")
    found = advice.advise(Question(long, "qa", H100), [short, reads])
    assert found.proposal.base == reads and "it reads 4,096 tokens" in dict(found.left_out)[short.id]
    assert found.proposal.recipes[0]["training"]["max_seq_tokens"] >= 15_000


# -- the commands ------------------------------------------------------------------------------


def test_recipe_list_and_explain(ftaas: Callable[..., Any]) -> None:
    rows = ftaas("recipe", "list", "--json").json["techniques"]
    assert [row["name"] for row in rows] == list(techniques())
    one = ftaas("recipe", "explain", "dpo", "--json").json
    assert one == technique("dpo").model_dump(mode="json")
    said = ftaas("recipe", "explain", "qlora").stdout
    assert "not when" in said and "arxiv.org/abs/2305.14314" in said and "quantise: nf4" in said
    wrong = ftaas("recipe", "explain", "lorra")
    assert wrong.code == 2 and "did you mean 'lora'?" in wrong.stderr


def test_advice_on_a_project(
    project_factory: Callable[..., Path], ftaas: Callable[..., Any], home: Path, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"Sort message {i}, please.", "completion": ("red", "blue", "green")[i % 3]}
        for i in range(90)
    ]
    text = PROJECT.format(name="codes", title="codes").replace("task: qa", "task: classification")
    path = project_factory("codes", text=text, data=rows)
    done = ftaas("recipe", "advise", "codes", "--hardware", "l4-x1", "--budget-usd", "20", "--json")
    assert done.code == 0, done.stderr
    said = done.json
    assert said["looked_at"] == "the first rows of its files"
    assert said["facts"]["kinds"] == {"text_pair": 90} and said["facts"]["answers"] == 3
    assert said["proposal"]["recipes"][0]["method"] == "classification"
    assert 0 < said["proposal"]["usd"] <= 20 and 0 < said["proposal"]["memory_gib"] < 22
    # What is proposed can be pasted into the project, and is valid there.
    proposed = {name: said["proposal"][name] for name in ("base_model", "recipes")}
    path.write_text(yaml.safe_dump(yaml.safe_load(text) | proposed, sort_keys=False), "utf-8")
    assert ftaas("project", "validate", "codes").code == 0
    # Once there are splits, they are what is looked at.
    store = Store(settings.load().store_path)
    with store.create("splits", "0" * 64) as draft:
        splits(draft.path, rows)
        (draft.path / "rows.jsonl").unlink()
    store.set_head("codes", "splits", "0" * 64, {}, draft.made.digest)
    said = ftaas("recipe", "advise", "codes", "--memory-gib", "8").stdout
    assert f"by splits {draft.made.digest[:12]}" in said and "Left out" in said and "recipes:" in said
    refused = ftaas("recipe", "advise", "codes", "--memory-gib", "0.2")
    assert refused.code == 3 and "the nearest is" in refused.stderr


def test_the_catalogue_is_part_of_what_is_installed() -> None:
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"][
        "package-data"
    ]
    folder = ROOT / "ftaas_pipelines"
    shipped = {file for pattern in declared["ftaas_pipelines"] for file in folder.glob(pattern)}
    assert {folder / "training" / "catalogue" / name for name in ("bases.yaml", "techniques.yaml")} <= shipped
