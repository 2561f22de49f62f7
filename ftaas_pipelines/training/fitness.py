"""Whether a recipe, a base and a dataset fit together, known before a GPU is paid for.

`problems` reads the base's folder, `data_problems` the splits; both give one problem for each thing that is
wrong, and `errors.raise_all` makes the error of them. Light: no torch.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ftaas_pipelines.errors import FtaasError, Problem
from ftaas_pipelines.inference import bases as base_models
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.projects.adapter import Adapter, LoRA
from ftaas_pipelines.projects.base_model import BaseModelRef
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.projects.licences import Licences
from ftaas_pipelines.projects.method import Classification, Distillation, Method
from ftaas_pipelines.projects.policy import PlatformPolicy
from ftaas_pipelines.projects.recipe import Recipe
from ftaas_pipelines.store import short
from ftaas_pipelines.training import chat_end, data_facts, licence, resolve, target_modules
from ftaas_pipelines.training.base_facts import BaseFacts
from ftaas_pipelines.training.catalogue.techniques import technique
from ftaas_pipelines.training.data_facts import DataFacts

# What a base of each family is called, and which one is at hand.
_FAMILIES = {
    "causal": ("a causal base", "embedded/tiny-causal"),
    "seq2seq": ("an encoder-decoder base (T5)", "embedded/tiny-t5"),
    "vision": ("a vision-language base", "embedded/tiny-vision"),
}
_SUPERVISED = {"causal": "sft", "seq2seq": "seq2seq", "vision": "vision"}
_LEAST_PER_LABEL = 2
_LEAST_KNOWN = 0.8  # of the embeddings; models pad their table by a few percent at most


@dataclass(frozen=True)
class Base:
    """The base that a recipe is to train, and on what terms.

    Attributes:
        ref: as project.yaml names it.
        folder: where it lies.
        family: causal, seq2seq or vision, as `inference.bases.family` tells it.
        digest: of its files; empty: an adapter to go on with is not held against it.
        policy, project: which licences the platform and the project take.
        where: the file that names the base, for the error.
    """

    ref: BaseModelRef
    folder: Path
    family: str
    digest: str = ""
    policy: Licences = Licences()
    project: Licences = Licences()
    where: str = "project.yaml"


def problems(
    recipe: Recipe,
    base: Base,
    *,
    init_from: Path | None = None,
    teacher: Base | None = None,
) -> list[Problem]:
    """What stands against training a recipe on a base.

    Args:
        init_from: folder of the adapter that the recipe goes on with.
        teacher: of a distillation.
    """
    where = f"{base.where}: recipes.{recipe.name}"
    facts = BaseFacts(base.folder)
    found = licence.problems(
        base.ref, base.folder, base.policy, base.project, f"{base.where}: base_model.licence"
    )
    try:
        found += _family(recipe.method, base, where)
        if found and base.family not in technique(recipe.method.kind).families:
            return found  # whatever else does not fit follows from that
        found += _tokenizer(facts, base)
        if base.family != "seq2seq" and recipe.method.kind not in chat_end.WITHOUT_ANSWERS:
            found += chat_end.problems(facts, base.family, base.ref.id)
        if isinstance(recipe.adapter, LoRA):
            place = f"{where}.adapter.target_modules"
            found += target_modules.problems(recipe.adapter.target_modules, facts, base.family, place)
            if recipe.adapter.embeddings:
                found += _embeddings(facts, base, f"{where}.adapter.embeddings")
        if init_from is not None and base.digest:
            found += _other_base(init_from, base, f"{where}.init_from")
        if teacher is not None:
            found += _teacher(facts, teacher, f"{where}.method.teacher")
            found += _taught_teacher(recipe, base, teacher, f"{where}.method.teacher_recipe")
    except FtaasError as error:  # a file of the base that is not what it should be
        found += error.problems
    return found


def of_project(loaded: Loaded, policy: PlatformPolicy) -> list[Problem]:
    """What stands against the recipes of a project, as far as their bases lie on this machine."""
    project = loaded.project
    found: list[Problem] = []
    try:
        base = at_hand(project.base_model, loaded, policy)
        for recipe in project.recipes if base else ():
            assert base is not None
            ref = recipe.method.teacher if isinstance(recipe.method, Distillation) else None
            found += problems(recipe, base, teacher=at_hand(ref, loaded, policy) if ref else None)
            found += _chain(recipe, project.adapter_before(recipe), f"{base.where}: recipes.{recipe.name}")
    except FtaasError as error:  # what lies there is no base
        found += error.problems
    return list(dict.fromkeys(found))


def at_hand(ref: BaseModelRef, loaded: Loaded, policy: PlatformPolicy) -> Base | None:
    """A base of a project where it can be had without a network; None where it cannot.

    Raises:
        InputInvalid: what lies there is no base model.
    """
    folder = base_models.at_hand(ref.id, ref.revision, loaded.folder)
    if folder is None:
        return None
    terms = (policy.licences, loaded.project.licences)
    where = str(loaded.folder / catalog.FILE)
    return Base(ref, folder, base_models.family(folder), "", *terms, where)


def data_problems(
    recipe: Recipe, splits: Path, family: str = "causal", where: str = "project.yaml"
) -> list[Problem]:
    """What stands against training a recipe on the training split of a splits artifact's folder."""
    method = resolve.method(recipe.method, family)
    columns = ("kind", "messages", *_COLUMNS.get(method.kind, ()))
    facts = data_facts.of_split(splits, columns, sources=recipe.sources)
    return unfit(method, facts, f"{where}: recipes.{recipe.name}.method")


# -- the base ----------------------------------------------------------------------------------


def _family(method: Method, base: Base, where: str) -> Iterator[Problem]:
    families = technique(method.kind).families
    named, got = _FAMILIES[base.family][0], f"{base.ref.id}, {_FAMILIES[base.family][0]}"
    if base.family not in families:
        wanted = " or ".join(_FAMILIES[f][0] for f in families)
        other = f"a base such as {_FAMILIES[families[0]][1]}"
        do = f"use method {_SUPERVISED[base.family]}, or {other}"
        yield Problem(f"method {method.kind} needs {wanted}", f"{where}.method", got, do)
        return
    for option, empty in (("packing", "none"), ("padding_free", False)):
        if base.family != "causal" and getattr(method, option, empty) != empty:
            do = "leave it out, or use a causal base"
            yield Problem(f"{option} needs a causal base, not {named}", f"{where}.method.{option}", got, do)


def _tokenizer(facts: BaseFacts, base: Base) -> Iterator[Problem]:
    """Tokens that the model has no embedding for; they would be read past its end."""
    where = f"{base.where}: base_model"
    rows, tokens = facts.rows, facts.tokens
    if not rows or not tokens:
        return
    last = max(tokens.values())
    ends = facts.config.get("eos_token_id")
    ends = [i for i in (ends if isinstance(ends, list) else [ends]) if isinstance(i, int)]
    if last >= rows:
        beyond = sum(number >= rows for number in tokens.values())
        why, got = f"{beyond} of its tokens have no embedding", f"token ids up to {last}, {rows} embeddings"
    elif len(tokens) < _LEAST_KNOWN * rows:
        why, got = "it knows far fewer tokens", f"{len(tokens)} tokens, {rows} embeddings"
    elif missing := set(ends) - set(tokens.values()):
        why, got = "it has no token of the id that the model ends with", f"eos_token_id {min(missing)}"
    else:
        return
    do = "put the tokenizer files of this very model into its folder"
    yield Problem(f"the tokenizer does not fit the model: {why}", where, f"{base.ref.id}: {got}", do)


def _embeddings(facts: BaseFacts, base: Base, where: str) -> Iterator[Problem]:
    """PEFT 0.21 makes linear layers of a T5's tied embeddings (`adapters._embeddings`)."""
    if base.family == "seq2seq" and facts.config.get("tie_word_embeddings", True):
        what = "this base ties its embeddings in a way that an adapter cannot keep"
        do = "leave embeddings out, or fine-tune fully: adapter: {kind: full}"
        yield Problem(what, where, base.ref.id, do)


def _chain(recipe: Recipe, before: Adapter | None, where: str) -> Iterator[Problem]:
    """A low-rank adapter is served beside the plain base: it cannot stand on weights that were trained."""
    if "adapter" not in recipe.model_fields_set or not isinstance(recipe.adapter, LoRA):
        return
    if before is not None and not isinstance(before, LoRA):
        what = "a low-rank adapter cannot go on from a model that was trained whole"
        got = f"lora, after {recipe.init_from} with full"
        yield Problem(what, f"{where}.adapter", got, "leave adapter out: full fine-tuning is taken over")


def _other_base(adapter: Path, base: Base, where: str) -> Iterator[Problem]:
    file = adapter / "adapter_config.json"
    if not file.is_file():
        return
    named = str(json.loads(file.read_text("utf-8")).get("base_model_name_or_path", ""))
    made_of = named.removeprefix("sha256:")
    if made_of == named or made_of == base.digest:  # one from elsewhere names no digest
        return
    what = "the adapter was trained on another base than this recipe's"
    got = f"base {short(made_of)}, here {short(base.digest)} ({base.ref.id})"
    yield Problem(what, where, got, "train the earlier recipe on this base first, or leave init_from out")


def _teacher(student: BaseFacts, teacher: Base, where: str) -> Iterator[Problem]:
    facts = BaseFacts(teacher.folder)
    yield from licence.problems(
        teacher.ref, teacher.folder, teacher.policy, teacher.project, f"{where}.licence"
    )
    if teacher.family != "causal":
        yield Problem(
            "a teacher must be a causal base", where, f"{teacher.ref.id}: {teacher.family}", "name another"
        )
    elif student.tokens and facts.tokens and student.tokens != facts.tokens:
        what = "teacher and student do not share a vocabulary, so their distributions cannot be compared"
        got = f"{teacher.ref.id}: {len(facts.tokens)} tokens, the student {len(student.tokens)}"
        do = "take a teacher of the student's line of models, or let the teacher write answers and use sft"
        yield Problem(what, where, got, do)


def _taught_teacher(recipe: Recipe, base: Base, teacher: Base, where: str) -> Iterator[Problem]:
    """What a recipe of this project made stands on this project's base."""
    assert isinstance(recipe.method, Distillation)
    name = recipe.method.teacher_recipe
    if name and teacher.ref != base.ref:
        what = "the teacher's recipe was trained on this project's base, and the teacher is another"
        got = f"{name} on {base.ref.id}, teacher {teacher.ref.id}"
        do = "name this project's base as teacher, or leave teacher_recipe out and name a merged model"
        yield Problem(what, where, got, do)


# -- the data ----------------------------------------------------------------------------------

_COLUMNS = {  # that the rules below need, beside the kind and the images
    "sft": ("answer", "extra"),
    "kto": ("extra",),
    "classification": ("answer",),
}
_LEARNS_FROM = {  # by the kind that a method's technique names first
    "preference": "preferences (a chosen and a rejected answer)",
    "labelled": "labels (good or bad answers) or preferences",
    "text": "plain texts",
}


def unfit(method: Method, facts: DataFacts, where: str) -> list[Problem]:
    """Why a method cannot learn from data of these facts: at most one problem.

    A method learns from all of its data: a record of another kind would be trained on otherwise than meant.
    """
    got = ", ".join(f"{n} {kind}" for kind, n in facts.kinds.items()) or "no records"
    kinds = technique(method.kind).records
    others = sum(n for kind, n in facts.kinds.items() if kind not in kinds)
    if others or not facts.seen:
        learns_from = _LEARNS_FROM.get(kinds[0], "questions with their answers")
        many = "the data has none" if others == facts.seen else f"{others} of {facts.seen} records are none"
        what = f"method {method.kind} learns from {learns_from}, and {many}"
        return [Problem(what, where, got, _instead(facts))]
    if facts.images and not technique(method.kind).needs_images:
        what = f"method {method.kind} sees no images, and {facts.images} of {facts.seen} records show some"
        return [Problem(what, where, got, "use method vision with a vision-language base, or leave them out")]
    if method.kind == "sft" and facts.share("prompt") == 1 and not facts.worked:
        what = "the data is prompts alone: no answer says more than the value that is checked"
        do = (
            "use method grpo, add worked answers, or say dataset.format: prompt_completion if that value "
            "is the answer to learn"
        )
        return [Problem(what, where, got, do)]
    if method.kind == "kto" and not facts.share("preference") and not (facts.good and facts.bad):
        one = "good" if facts.good else "bad"
        what = f"every label is {one}: there is nothing to tell apart"
        return [Problem(what, where, f"{facts.good} good, {facts.bad} bad", "add answers of the other kind")]
    if technique(method.kind).needs_images and not facts.images:
        what = f"no record shows an image, which method {method.kind} learns from"
        return [Problem(what, where, got, "use method sft, or a dataset with images")]
    if isinstance(method, Classification):
        return _labels(method, facts, where)
    return []


def _labels(method: Classification, facts: DataFacts, where: str) -> list[Problem]:
    got = f"{facts.answers} different answers in {facts.seen} records"
    if facts.answers < 2:
        what = "every record has the same answer: there is nothing to tell apart"
        return [Problem(what, where, got, "add records of other labels")]
    if facts.answers > method.max_labels:
        what = f"the answers are free text, or more labels than max_labels={method.max_labels}"
        return [Problem(what, where, got, "use method sft, or raise max_labels")]
    if facts.seen < _LEAST_PER_LABEL * facts.answers:
        what = f"the answers are free text: fewer than {_LEAST_PER_LABEL} records of each"
        return [Problem(what, where, got, "use method sft, or give more records of each label")]
    return []


def _instead(facts: DataFacts) -> str:
    """What can be done with the data there is."""
    if len(facts.kinds) > 1:
        return "leave the sources of other kinds out, or choose another method"
    if facts.share("preference"):
        return "use method dpo or orpo, or other data"
    if facts.share("labelled"):
        return "use method kto, or other data"
    if facts.share("text"):
        return "use method pretrain, or other data"
    return "use method sft, or data of that kind"
