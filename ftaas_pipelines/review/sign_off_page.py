"""What a sign-off's form shows: a request's summary as task data, every value escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, cast

from ftaas_pipelines.review.rounds import Kind

NOT_STATED = "not stated"
_SOURCE_FACTS = ("licence", "consent", "purpose", "owner", "vendor", "synthetic", "split")


def render_sign_off(kind: Kind, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Task data of the forms `sme`, `rai`, `approver` and `break_glass`.

    Args:
        summary: what the request says. Of all: project, title, digest, environment. Of a dataset: counts,
            dropped, findings, quality, sources, dataset, intended_use, not_for, difference (`from`, `to`
            and counts: corrected, rejected, came, went, changed), row_review (`evidence` of `row_review`).
            Of a release: release, scores, thresholds, staging, sign_offs, card. Of break-glass: people,
            reason, release, until. What is missing reads as "not stated".
    """
    if kind == "sme":
        return {"summary_html": _dataset(summary), "subject": _subject(summary, "dataset")}
    if kind == "rai":
        return {
            "summary_html": _dataset(summary),
            "findings_html": _findings(summary.get("findings") or {}),
            "sources_html": _sources(summary.get("sources") or []),
            "subject": _subject(summary, "dataset"),
        }
    if kind == "approver":
        return _approval(summary)
    facts = {name: summary.get(name) for name in ("release", "environment", "people", "reason", "until")}
    return {"summary_html": _facts(facts.items(), "Break-glass"), "subject": _subject(summary, "environment")}


# -- datasets ------------------------------------------------------------------------------------


def _dataset(summary: Mapping[str, Any]) -> str:
    parts = [
        _facts(
            [
                ("Use", summary.get("intended_use")),
                ("Not for", summary.get("not_for")),
                ("Rows", _counts(summary.get("counts"))),
                ("Left out", _counts(summary.get("dropped"))),
                ("Quality checks", _quality(summary.get("quality"))),
            ],
            str(summary.get("title") or summary.get("project") or "Dataset"),
        ),
        _difference(summary.get("difference")),
        _row_review(summary.get("row_review")),
    ]
    return "".join(parts)


def _difference(found: Mapping[str, Any] | None) -> str:
    if not found:
        return _facts([("Difference", NOT_STATED)], "What the row review changed")
    names = (
        ("corrected", "Rows corrected by reviewers"),
        ("rejected", "Rows rejected by reviewers"),
        ("came", "Rows that came"),
        ("went", "Rows that went"),
        ("changed", "Rows that changed otherwise"),
    )
    rows = [(said, found.get(name, 0)) for name, said in names]
    versions = f"{str(found.get('from') or '-')[:12]} to {str(found.get('to') or '-')[:12]}"
    return _facts([("Versions", versions), *rows], "What is different from the version that was reviewed")


def _row_review(found: Mapping[str, Any] | None) -> str:
    if not found:
        return _facts([("Row review", "none was asked for")], "Row review")
    return _facts(
        [
            ("State", found.get("state")),
            ("Rows asked about", f"{found.get('asked')} of {found.get('records')}"),
            ("Seed of the sample", found.get("seed")),
            ("Verdicts", _counts({name: n for name, n in (found.get("words") or {}).items() if n})),
            ("Agreement", _agreement(found.get("agreement"))),
            ("What the sample supports", found.get("bound_says")),
        ],
        "Row review",
    )


def _agreement(found: Mapping[str, Any] | None) -> str:
    if found and not found.get("rows"):
        return "one person looked at each row"
    return _counts(found)


def _findings(found: Mapping[str, Any]) -> str:
    if not found:
        return f"<i>{NOT_STATED}</i>"
    rows = [(name, found[name]) for name in sorted(found, key=lambda n: (not isinstance(found[n], str), n))]
    return _facts(rows, "", emphasised={"not checked"})


def _sources(sources: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th align='left'>{escape(name)}</th>" for name in ("source", *_SOURCE_FACTS))
    body = "".join(
        "<tr>" + "".join(_cell(s.get(name) or NOT_STATED) for name in ("name", *_SOURCE_FACTS)) + "</tr>"
        for s in ({**s, "synthetic": "yes" if s.get("synthetic") else "no"} for s in sources)
    )
    return f"<table cellpadding='4'><tr>{head}</tr>{body}</table>"


# -- releases ------------------------------------------------------------------------------------


def _approval(summary: Mapping[str, Any]) -> dict[str, Any]:
    environment = str(summary.get("environment") or NOT_STATED)
    project = str(summary.get("project") or (summary.get("release") or {}).get("project") or NOT_STATED)
    staging: Mapping[str, Any] | None = summary.get("staging")
    evidence = _facts(
        [(f"Sign-off: {s.get('role')}", f"{s.get('by')}, {s.get('at')}: {s.get('decision')}")
         for s in summary.get("sign_offs") or []]
        or [("Sign-offs of its dataset", NOT_STATED)],
        "Its dataset",
    )  # fmt: skip
    if environment == "production":
        evidence += _facts(staging.items() if staging else [("Staging", "it does not run there")], "Staging")
    return {
        "summary_html": _facts(
            [("Project", project), ("Environment", environment), ("Report", summary.get("report"))],
            f"{project}: a release for {environment}",
        ),
        "evaluation_html": _scores(summary.get("scores") or {}, summary.get("thresholds") or {}),
        "evidence_html": evidence,
        "card": str(summary.get("card") or NOT_STATED),
        "question": f"May this release serve in {environment}?",
        "subject": _subject(summary, "environment"),
    }


def _scores(scores: Mapping[str, Any], thresholds: Mapping[str, float]) -> str:
    parts: list[str] = []
    for name, one in (scores.get("sets") or {}).items():
        systems: dict[str, Any] = one["systems"]
        metrics = sorted({metric for parts_ in systems.values() for metric in parts_["overall"]})
        head = "".join(f"<th align='left'>{escape(str(s))}</th>" for s in ("", *systems))
        lines = ((m, *(_interval(s["overall"].get(m)) for s in systems.values())) for m in metrics)
        body = "".join(f"<tr>{''.join(map(_cell, line))}</tr>" for line in lines)
        parts.append(f"<h4>{escape(str(name))}</h4><table cellpadding='4'><tr>{head}</tr>{body}</table>")
    wins = [
        (f"Against {k}", v.get("verdict"))
        for k, v in (scores.get("wins") or {}).items()
        if isinstance(v, dict)
    ]
    asked = [(name, f"at least {value:g}") for name, value in sorted(thresholds.items())]
    return ("".join(parts) or f"<i>{NOT_STATED}</i>") + _facts(wins, "") + _facts(asked, "Thresholds")


def _interval(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "-"
    low, high = found.get("low"), found.get("high")
    between = f" ({low:.3f} to {high:.3f})" if isinstance(low, float) and isinstance(high, float) else ""
    return f"{found['value']:.3f}{between}"


# -- HTML ----------------------------------------------------------------------------------------


def _subject(summary: Mapping[str, Any], *names: str) -> dict[str, str]:
    """The lines that say what is signed: plain text."""
    told = {name: str(summary[name]) for name in ("project", "digest", *names) if summary.get(name)}
    review: Mapping[str, Any] = summary.get("row_review") or {}
    sample = {
        f"sample {name}": str(review[name])
        for name in ("asked", "seed", "bound")
        if review.get(name) is not None
    }
    return {**told, **sample}


def _facts(
    rows: Iterable[tuple[str, Any]], title: str, emphasised: set[str] | frozenset[str] = frozenset()
) -> str:
    body = "".join(
        f"<tr>{_cell(name)}{_cell(value, bold=value in emphasised)}</tr>"
        for name, value in ((n, NOT_STATED if v in (None, "") else _said(v)) for n, v in rows)
    )
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f"{heading}<table cellpadding='4'>{body}</table>" if body else ""


def _cell(value: Any, bold: bool = False) -> str:
    text = escape(_said(value))
    return f"<td valign='top'>{f'<b>{text}</b>' if bold else text}</td>"


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_said(v)}" for k, v in cast(Mapping[str, Any], value).items())
    if isinstance(value, list | tuple | set):
        return ", ".join(_said(v) for v in cast(Iterable[Any], value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _counts(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "none"
    return ", ".join(f"{name} {_said(n)}" for name, n in found.items() if n not in (None, ""))


def _quality(found: Mapping[str, Any] | None) -> str:
    if not found:
        return NOT_STATED
    failed = cast(list[Any], found.get("failed") or [])
    return "all passed" if found.get("passed") else f"{len(failed)} failed: {_said(failed)}"
