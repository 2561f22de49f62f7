"""The quality report as one HTML file: no script, no network, light and dark."""

from collections.abc import Mapping, Sequence
from html import escape

from ftaas_pipelines.data.quality.suite import Result

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #667085; --paper: #fbfbfd; --card: #fff;
  --line: #e4e7ec; --good: #18794e; --bad: #c4320a; --warn: #946200; --bar: #4f6bed; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaf0; --soft: #98a2b3; --paper: #14171f;
  --card: #1c202b; --line: #2f3545; --good: #4cc38a; --bad: #ff8b5e; --warn: #e5b454; --bar: #8da2fb; } }
* { box-sizing: border-box } body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); margin: 0 auto; max-width: 68rem; padding: 2rem 1.25rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.05rem; margin: 0 0 .6rem }
p.lead { color: var(--soft); margin: .2rem 0 1.4rem } .good { color: var(--good) } .bad { color: var(--bad) }
.warn { color: var(--warn) } section { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: 1.1rem 1.25rem; margin: 0 0 1.1rem; overflow-x: auto }
.grid section { margin: 0 }
.grid { display: grid; gap: 1.1rem; margin: 0 0 1.1rem;
  grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)) }
table { border-collapse: collapse; width: 100% } td, th { padding: .35rem .6rem .35rem 0; text-align: left;
  border-bottom: 1px solid var(--line); vertical-align: top } tr:last-child td { border: 0 }
th { color: var(--soft); font-weight: 500 } td.n { text-align: right; font-variant-numeric: tabular-nums }
code { font-size: .9em; color: var(--soft) } svg { width: 100%; height: auto; display: block }
svg rect { fill: var(--bar) } svg text { fill: var(--soft); font-size: 14px } svg line { stroke: var(--line) }
"""
_BINS = 32
_NAMES = 20


def render(
    results: Sequence[Result],
    lengths: Mapping[str, Mapping[int, int]],
    facts: Mapping[str, Mapping[str, int | str]],
    shares: Mapping[str, Mapping[str, int]] | None = None,
) -> str:
    """The page.

    Args:
        results: of the suite.
        lengths: a histogram each: title to records by number of characters.
        facts: a small table each: title to rows of name and number.
        shares: bars each: title to records by name (kinds, languages, labels).
    """
    bad = [r for r in results if not r.success and r.severity == "error"]
    warned = [r for r in results if not r.success and r.severity == "warn"]
    state = f'<span class="bad">{len(bad)} failed</span>' if bad else '<span class="good">passed</span>'
    warnings = f', <span class="warn">{len(warned)} warned</span>' if warned else ""
    plots = "".join(f"<section><h2>{escape(t)}</h2>{histogram(v)}</section>" for t, v in lengths.items())
    plots += "".join(f"<section><h2>{escape(t)}</h2>{bars(v)}</section>" for t, v in (shares or {}).items())
    tables = "".join(f"<section><h2>{escape(t)}</h2>{_facts(rows)}</section>" for t, rows in facts.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Dataset quality</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>Dataset quality: {state}{warnings}</h1>"
        f'<p class="lead">{len(results)} expectations, run by Great Expectations on every record.</p>'
        f"<section><h2>Expectations</h2>{_expectations(results)}</section>"
        f'<div class="grid">{plots}</div><div class="grid">{tables}</div></body></html>\n'
    )


def histogram(counts: Mapping[int, int]) -> str:
    """An SVG histogram: records by a whole number. The last bar holds everything past the 99th percentile."""
    ordered = sorted(counts)
    if not ordered:
        return "<p>no records</p>"
    top = max(_percentile(counts, 0.99), 1)
    width = max(1, -(-(top + 1) // _BINS))
    bins = [0] * min(_BINS, top // width + 1)
    for value in ordered:
        bins[min(value // width, len(bins) - 1)] += counts[value]
    step, peak = 640 / len(bins), max(bins)
    bars = "".join(
        f'<rect x="{i * step + 1:.1f}" y="{130 - 120 * n / peak:.1f}" width="{step - 2:.1f}" '
        f'height="{120 * n / peak:.1f}" rx="2"><title>{i * width} to '
        f"{(i + 1) * width - 1 if i < len(bins) - 1 else ordered[-1]} characters: {n} records</title></rect>"
        for i, n in enumerate(bins)
        if n
    )
    facts = f"least {ordered[0]} · median {_percentile(counts, 0.5)} · most {ordered[-1]}"
    return (
        f'<svg viewBox="0 0 640 170" role="img" aria-label="{facts}">{bars}'
        '<line x1="0" y1="130.5" x2="640" y2="130.5"/><text x="0" y="147">0</text>'
        f'<text x="640" y="147" text-anchor="end">{len(bins) * width}</text>'
        f'<text x="320" y="163" text-anchor="middle">{facts} characters</text></svg>'
    )


def _percentile(counts: Mapping[int, int], share: float) -> int:
    """The least value that so large a share of the records does not pass."""
    left = share * sum(counts.values())
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return value
    return max(counts)


def bars(counts: Mapping[str, int]) -> str:
    """Names with a bar each, the most frequent first; past twenty they are counted together."""
    if not counts:
        return "<p>none</p>"
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(n for _, n in ordered[_NAMES:])
    shown = ordered[:_NAMES] + ([(f"{len(ordered) - _NAMES} more", rest)] if rest else [])
    peak = max(n for _, n in shown)
    rows = "".join(
        f'<tr><td>{escape(name[:60])}</td><td style="width:50%"><svg viewBox="0 0 100 8" height="10" '
        f'preserveAspectRatio="none"><rect width="{max(1, 100 * n / peak):.0f}" height="8"/></svg>'
        f'</td><td class="n">{n}</td></tr>'
        for name, n in shown
    )
    return f"<table>{rows}</table>"


def _expectations(results: Sequence[Result]) -> str:
    rows: list[str] = []
    for r in results:
        style, word = ("good", "passed") if r.success else ("bad", "failed")
        if not r.success and r.severity == "warn":
            style, word = "warn", "warning"
        detail = f"<br><code>{escape(r.detail)}</code>" if r.detail else ""
        rows.append(
            f'<tr><td class="{style}">{word}</td><td>{escape(r.name)}<br><code>{escape(r.type)}</code></td>'
            f"<td>{escape(r.observed)}{detail}</td></tr>"
        )
    return f"<table><tr><th>state</th><th>expectation</th><th>observed</th></tr>{''.join(rows)}</table>"


def _facts(rows: Mapping[str, int | str]) -> str:
    body = "".join(
        f'<tr><td>{escape(name.replace("_", " "))}</td><td class="n">{escape(str(value))}</td></tr>'
        for name, value in rows.items()
    )
    return f"<table>{body}</table>" if body else "<p>none</p>"
