"""`index.html`: the whole report in one file that loads nothing, for light and dark screens."""

import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import Final

from simulations.report.data import Axis, Figure, Goal, Report, RunFacts, Scalar, Table
from simulations.report.style import FAINT_INK, GRID, INK, PALETTE, PAPER, file_name, number_text

_MET: Final = ("#1a6b34", "#5fd487")
_MISSED: Final = ("#b3261e", "#ff8a80")
_CARD: Final = ("#f6f8fa", "#1c2126")

_SIGNS: Final = {">=": "≥", "<=": "≤"}


def page(report: Report, facts: RunFacts, pictures: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        report: what came out.
        facts: what was run.
        pictures: the SVG of each plot, by the plot's name.
    """
    parts = [
        _header(report, facts),
        _figures(report.figures.values()),
        *(
            _section(plot.name, _picture(plot.name, plot.caption, pictures[plot.name]))
            for plot in report.all_plots()
        ),
        *(_section(each.name, _table(each)) for each in report.tables.values()),
        _notes(report.notes),
        _run(facts),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(facts.scenario)}, {escape(_seeds(facts.seeds))}</title>\n"
        f"<style>\n{_css()}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def svg_for_page(svg: str) -> str:
    """Turn an SVG into one that stands in a page and takes the page's colours and fonts.

    Colours become the page's CSS variables: `--ink`, `--faint`, `--grid` and `--series-1`….
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # they would repeat from one picture to the next
    svg = re.sub(r' height="[0-9.]+pt"', "", svg, count=1)
    svg = re.sub(r' width="([0-9.]+pt)"', r' style="max-width: \1"', svg, count=1)
    svg = svg.replace("'DejaVu Sans'", "inherit")
    names = {INK[0]: "--ink", FAINT_INK[0]: "--faint", GRID[0]: "--grid"}
    names |= {light: f"--series-{n}" for n, (light, _) in enumerate(PALETTE, 1)}
    for colour, name in names.items():
        svg = svg.replace(colour, f"var({name})")
    return svg


def _header(report: Report, facts: RunFacts) -> str:
    judged = [each for each in report.figures.values() if each.met is not None]
    met = sum(each.met is True for each in judged)
    verdict = ""
    if judged:
        kind = "met" if met == len(judged) else "missed"
        verdict = f'<p class="verdict {kind}">{met} of {len(judged)} goals met</p>'
    told = [_seeds(facts.seeds)]
    if facts.fidelity:
        told.append(f"{facts.fidelity} fidelity")
    told.append(f"{duration_text(facts.virtual_seconds)} of virtual time")
    told.append(f"{duration_text(facts.real_seconds)} of real time")
    return (
        f"<header><h1>{escape(facts.scenario)}</h1><p>{escape(facts.summary)}</p>"
        f'<p class="faint">{escape(" · ".join(told))}</p>{verdict}</header>'
    )


def _figures(figures: Iterable[Figure]) -> str:
    cards = "\n".join(_card(each) for each in figures)
    return f'<section class="cards" aria-label="figures">\n{cards}\n</section>' if cards else ""


def _card(figure: Figure) -> str:
    kind = {True: " met", False: " missed", None: ""}[figure.met]
    lines = [f"<h2>{escape(figure.name)}</h2>"]
    lines.append(f'<p class="value">{escape(value_text(figure.value, figure.unit))}</p>')
    spread = figure.spread
    if spread is not None and spread.low is not None and spread.high is not None:
        lines.append(
            f'<p class="faint">{escape(number_text(spread.low))} to'
            f" {escape(value_text(spread.high, figure.unit))} over {len(spread.values)} seeds</p>"
        )
    if figure.goal is not None:
        mark = "✓ met" if figure.met else "✗ missed"
        lines.append(
            f'<p class="goal"><strong>{mark}</strong> goal'
            f" {escape(goal_text(figure.goal, figure.unit))}</p>"
        )
    if figure.detail:
        lines.append(f'<p class="faint">{escape(figure.detail)}</p>')
    return f'<article class="card{kind}">{"".join(lines)}</article>'


def _section(title: str, inside: str) -> str:
    return f'<section id="{file_name(title)}">\n<h2>{escape(title)}</h2>\n{inside}\n</section>'


def _picture(name: str, caption: str, svg: str) -> str:
    drawn = svg_for_page(svg).replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1)
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{drawn}{below}</figure>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_heading(each)}</th>' for each in table.columns)
    rows = "\n".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in table.rows)
    caption = f'<p class="faint">{escape(table.caption)}</p>' if table.caption else ""
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>{caption}"
    )


def _heading(axis: Axis) -> str:
    unit = f' <span class="faint">{escape(axis.unit)}</span>' if axis.unit else ""
    return escape(axis.label) + unit


def _cell(cell: Scalar) -> str:
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return f'<td class="number">{escape(number_text(cell))}</td>'
    return f"<td>{escape(scalar_text(cell))}</td>"


def _notes(notes: Iterable[str]) -> str:
    paragraphs = "\n".join(f"<p>{escape(each)}</p>" for each in notes)
    return _section("How to read this", paragraphs) if paragraphs else ""


def _run(facts: RunFacts) -> str:
    rows = "\n".join(
        f'<tr{_mark(name in facts.changed)}><th scope="row">{escape(name)}</th>'
        f"<td>{escape(_parameter_text(value))}</td></tr>"
        for name, value in facts.parameters.items()
    )
    told = [(name, version) for name, version in facts.versions.items()]
    told.append(("events in the log", number_text(facts.events)))
    told += [
        (f"digest of the log, seed {seed}", digest)
        for seed, digest in zip(facts.seeds, facts.log_digest, strict=False)
    ]
    about = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in told
    )
    inside = (
        f"<p>The same command gives the same events:</p>\n<pre>{escape(facts.command)}</pre>\n"
        f'<div class="two"><table class="facts">\n{rows}\n</table>'
        f'<table class="facts">\n{about}\n</table></div>'
    )
    if facts.changed:
        inside += '\n<p class="faint">Bold parameters are not at their defaults.</p>'
    return _section("The run", inside)


def _mark(changed: bool) -> str:
    return ' class="changed"' if changed else ""


# --- words --------------------------------------------------------------------------------------


def value_text(value: float | None, unit: str) -> str:
    """Write a value and its unit."""
    if value is None:
        return "not measured"
    return f"{number_text(value)} {unit}".rstrip()


def goal_text(goal: Goal, unit: str) -> str:
    """Write a goal."""
    return f"{_SIGNS[goal.comparison]} {value_text(goal.value, unit)}"


def scalar_text(value: Scalar) -> str:
    """Write a plain value."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number_text(value) if isinstance(value, int | float) else value


def duration_text(seconds: float) -> str:
    """Write a duration in the unit that suits it."""
    for size, unit in ((86_400.0, "days"), (3_600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 or not seconds else f"{seconds * 1000:.3g} ms"


def _parameter_text(value: Scalar | tuple[Scalar, ...]) -> str:
    if isinstance(value, tuple):
        return ", ".join(scalar_text(each) for each in value)
    return scalar_text(value)


def _seeds(seeds: tuple[int, ...]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if seeds == tuple(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return "seeds " + ", ".join(str(each) for each in seeds)


# --- looks --------------------------------------------------------------------------------------


def _css() -> str:
    pairs = {"paper": PAPER, "ink": INK, "faint": FAINT_INK, "grid": GRID, "card": _CARD}
    pairs |= {"met": _MET, "missed": _MISSED}
    pairs |= {f"series-{number}": pair for number, pair in enumerate(PALETTE, 1)}
    light = "".join(f" --{name}: {pair[0]};" for name, pair in pairs.items())
    dark = "".join(f" --{name}: {pair[1]};" for name, pair in pairs.items())
    return (
        f":root {{{light} }}\n@media (prefers-color-scheme: dark) {{ :root {{{dark} }} }}\n{_RULES}"
    )


_RULES: Final = """\
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0; }
h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem; }
p { margin: .3rem 0; max-width: 46rem; }
.faint, figcaption { color: var(--faint); font-size: .9em; }
.verdict { font-weight: 600; }
.verdict.met, .card.met strong { color: var(--met); }
.verdict.missed, .card.missed strong { color: var(--missed); }
.cards { display: grid; gap: .75rem; margin-top: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
.card { background: var(--card); border-left: 4px solid var(--grid); border-radius: 4px;
  padding: .8rem 1rem; }
.card.met { border-left-color: var(--met); }
.card.missed { border-left-color: var(--missed); }
.card h2 { margin: 0; font-size: .95rem; font-weight: 500; }
.card .value { font-size: 1.6rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
figure { margin: 0; overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 32rem; height: auto; }
figcaption { max-width: 46rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92em; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--grid); }
th { font-weight: 600; }
td.number { text-align: right; }
.facts th { font-weight: 400; color: var(--faint); }
.facts td { overflow-wrap: anywhere; }
.facts .changed th, .facts .changed td { font-weight: 700; color: var(--ink); }
.two { display: grid; gap: 1rem 2.5rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); }
pre { background: var(--card); padding: .7rem 1rem; border-radius: 4px; overflow-x: auto;
  font: .9em/1.5 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap; }
"""
