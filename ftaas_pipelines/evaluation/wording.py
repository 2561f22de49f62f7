"""Scores in words: what a number, an interval and a comparison mean. Light: assets and the CLI import it."""

from collections.abc import Mapping
from typing import Any

METRIC_NAMES = {
    "exact_match": "Exact match",
    "token_f1": "Token F1",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "loss": "Loss",
}
METRIC_NOTES = {
    "exact_match": "answers equal to the reference; JSON compared as data",
    "token_f1": "words shared with the reference, precision and recall",
    "rouge_l": "longest common run of words, in order",
    "chrf": "shared character sequences, 0 to 100, mean over records",
    "loss": "nats a token of the reference answer; lower is better",
}
SYSTEM_NAMES = {
    "candidate": "adapter",
    "base": "base model",
    "champion": "champion",
    "untouched_input": "untouched input",
    "majority": "most frequent answer",
    "retrieval": "nearest training prompt",
}


def number(metric: str, value: float) -> str:
    """A score as people read it: percent for shares, one digit for chrF, three for loss."""
    if metric == "loss":
        return f"{value:.3f}"
    return f"{value:.1f}" if metric == "chrf" else f"{100 * value:.1f}%"


def span(metric: str, interval: Mapping[str, float]) -> str:
    """An interval as people read it."""
    low, high = number(metric, interval["low"]), number(metric, interval["high"])
    return f"{low.removesuffix('%')} to {high}"


def difference(metric: str, interval: Mapping[str, float]) -> str:
    """A difference between two systems as people read it, with its interval."""
    scale, unit = (100, " points") if metric not in ("chrf", "loss") else (1, "")
    value, low, high = (scale * interval[k] for k in ("value", "low", "high"))
    return f"{value:+.1f}{unit}, {low:+.1f} to {high:+.1f}"


def words(name: str) -> str:
    return name.replace("_", " ")


def headline(scores: Mapping[str, Any], split: str = "test") -> str:
    """Who wins, in one sentence of plain English, by the primary metric on the whole test split."""
    metric, systems = scores["primary"], scores["sets"][split]["systems"]
    win = scores["wins"]["naive"]

    def score(label: str) -> str:
        return number(metric, systems[label]["overall"][metric]["value"])

    count = scores["sets"][split]["n"]
    does = (
        f"answers {score('candidate')} of the {count} {split} questions exactly"
        if metric == "exact_match"
        else f"reaches {METRIC_NAMES[metric]} {score('candidate')} on the {count} {split} questions"
    )
    base = f", the base model {score('base')}" if "base" in systems else ""
    if not win:
        return f"The adapter {does}{base}."
    naive = f"the {SYSTEM_NAMES[win['baseline']]} {score(win['baseline'])}"
    tie = win["candidate"] == win["other"]
    verdict = "wins" if win["beaten"] else "ties" if tie else "loses"
    return f"The adapter {verdict}: it {does}; {naive}{base}."


def remarks(scores: Mapping[str, Any], split: str = "test") -> list[str]:
    """What else a decision needs: the slices, the challenges, the champion, and what a loss means."""
    metric, found = scores["primary"], []
    name = METRIC_NAMES[metric].lower() if metric != "chrf" else "chrF"
    win = scores["wins"]["naive"]
    if win and not win["beaten"]:
        found.append(
            f"The {SYSTEM_NAMES[win['baseline']]} needs no model and does as well or better, "
            "so the gate refuses this adapter whatever its other scores."
        )
    elif win and win["verdict"] != "better":
        found.append("Its lead over the naive baseline is within chance: the interval includes zero.")
    systems, slices = scores["sets"][split]["systems"], scores["sets"][split]["slices"]
    if len(slices) > 1:
        parts = [
            f"{number(metric, systems['candidate'][part][metric]['value'])} on the {count} {part} answers"
            for part, count in slices.items()
        ]
        found.append(f"By kind of answer, {name} is {' and '.join(parts)}.")
    for challenge, one in list(scores["sets"].items())[1:]:
        value = number(metric, one["systems"]["candidate"]["overall"][metric]["value"])
        found.append(f"On the challenge {words(challenge)} ({one['n']} records) {name} is {value}.")
    champion = scores["wins"]["champion"]
    if champion:
        found.append(
            f"Against the champion in production: {champion['verdict']} ({difference(metric, champion)})."
        )
    return found
