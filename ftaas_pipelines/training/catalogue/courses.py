"""Which methods suit some data and a task, and why the others do not. Pure rules, the best first."""

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from ftaas_pipelines.projects.base_model import Family
from ftaas_pipelines.projects.method import Method
from ftaas_pipelines.training.catalogue.techniques import techniques
from ftaas_pipelines.training.data_facts import DataFacts
from ftaas_pipelines.training.fitness import unfit

MOST = 0.5  # share of the records from which on they decide
CHARACTERS_PER_TOKEN = 4.0  # of English by a vocabulary of 30,000 and more; other languages have fewer
_T5_TOKENS = 512  # what T5 was trained on
_LABEL_CHARACTERS, _LEAST_PER_LABEL, _MOST_LABELS = 80, 5, 1000


@dataclass(frozen=True)
class Course:
    """Methods one after another, each going on with what the one before it learnt.

    Attributes:
        family: of the base they need.
        why: in a sentence.
    """

    methods: tuple[str, ...]
    family: Family
    why: str


def courses(facts: DataFacts, task: str) -> list[Course]:
    """What can be done with the data, the best first; empty where no method learns from all of it."""
    possible = _most(facts, task)
    if not any(course.methods == ("sft",) for course in possible):
        possible.append(Course(("sft",), "causal", "all records have answers to learn"))
    return [c for c in possible if not any(unfit(method(kind), facts, "") for kind in c.methods)]


def _most(facts: DataFacts, task: str) -> list[Course]:
    """By what most of the records are."""
    if facts.images:
        return [Course(("vision",), "vision", f"{facts.images:,} of {facts.seen:,} records show images")]
    if facts.share("text") > MOST:
        why = "the records are plain texts: there are no questions to answer yet"
        return [Course(("pretrain",), "causal", why)]
    if facts.share("preference") > MOST:
        return _of_preferences()
    if facts.share("labelled") > MOST:
        why = "the records are single answers marked good or bad, no pairs"
        return [Course(("kto",), "causal", why)]
    if facts.share("prompt") > MOST:
        return _of_checked(facts)
    return _supervised(facts, task)


def _of_preferences() -> list[Course]:
    return [
        Course(
            ("sft", "dpo"),
            "causal",
            "the records are preferences: the chosen answers are learnt first, then what makes them better",
        ),
        Course(("orpo",), "causal", "both in one training without a reference, where two cost too much"),
        Course(("sft",), "causal", "the chosen answers alone, where nothing more can be paid for"),
    ]


def _of_checked(facts: DataFacts) -> list[Course]:
    practise = "the answers can be checked by a program, so the model can practise on them"
    if not facts.worked:
        return [Course(("grpo",), "causal", f"{practise}; there are no worked answers to learn from first")]
    return [
        Course(("sft", "grpo"), "causal", f"the worked answers are learnt first; then {practise}"),
        Course(
            ("sft",), "causal", "the worked answers alone: practising on sampled answers costs too much here"
        ),
    ]


def _supervised(facts: DataFacts, task: str) -> list[Course]:
    sft = Course(("sft",), "causal", "the records are questions with good answers")
    if task == "classification" and are_labels(facts):
        why = f"the answers are {facts.answers} labels, and a label is all that the task asks for"
        return [Course(("classification",), "causal", why), sft]
    if task == "correction" and tokens(facts) <= _T5_TOKENS:
        why = "short texts are rewritten into short texts, which small encoder-decoders do well"
        return [Course(("seq2seq",), "seq2seq", why), sft]
    return [sft]


def are_labels(facts: DataFacts) -> bool:
    """Whether the answers are labels: few, short, and each said several times."""
    few = 2 <= facts.answers <= min(_MOST_LABELS, facts.seen // _LEAST_PER_LABEL)
    return few and facts.answer_characters.p95 <= _LABEL_CHARACTERS


def tokens(facts: DataFacts) -> int:
    """About how many tokens nineteen of twenty records have, question and answer."""
    return round((facts.prompt_characters.p95 + facts.answer_characters.p95) / CHARACTERS_PER_TOKEN)


def other_methods(facts: DataFacts, task: str, taken: Course) -> list[tuple[str, str]]:
    """Each method that the course leaves out, and why."""
    left_out = [t.name for t in techniques().values() if t.kind == "method" and t.name not in taken.methods]
    return [(name, _why_not(name, facts, task)) for name in left_out]


def method(kind: str, **more: Any) -> Method:
    """A method's section with what it cannot do without."""
    needs: dict[str, Any] = {
        "grpo": {"rewards": [{"kind": "exact_match"}]},
        "rloo": {"rewards": [{"kind": "exact_match"}]},
        "distillation": {"teacher": {"id": "teacher"}},
    }
    return TypeAdapter[Method](Method).validate_python({"kind": kind, **needs.get(kind, {}), **more})


_BETTER = {
    "sft": "writes answers word by word, where less will do",
    "seq2seq": "for rewriting short texts; a causal base knows more and holds conversations",
    "classification": "names labels alone, and more than a label is wanted",
    "orpo": "sft and then dpo keeps nearer to what was learnt; orpo is for where one training must do",
    "reward": "scores answers for rloo and answers nothing itself",
    "rloo": "needs a reward model and samples answers: many times dearer; try the proposal first",
    "grpo": "there are answers to imitate; practising pays once imitating no longer helps",
    "distillation": "needs a teacher that does the task better than the proposal; try that first",
    "dpo": "what was proposed fits the records better",
    "kto": "pairs are there; dpo uses that two answers belong together",
}


def _why_not(name: str, facts: DataFacts, task: str) -> str:
    if problems := unfit(method(name), facts, ""):
        return problems[0].what
    if name == "classification" and not are_labels(facts):
        return f"{facts.answers} different answers in {facts.seen} records are no labels"
    if name == "classification":
        return f"names labels alone, and the task is {task}"
    return _BETTER[name]
