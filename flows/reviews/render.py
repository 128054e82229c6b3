"""A review as Markdown and as one HTML file that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from flows.reviews import charts
from flows.reviews.finding import ORDER, TITLES, Finding, Review, Table
from flows.reviews.page import PAGE

WORDS = {"critical": "Critical", "warning": "Warning", "unknown": "Unknown", "info": "For your information"}


def html(review: Review) -> str:
    """Self-contained. Every text is escaped: statements are written by other people."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    drawn: list[dict[str, Any]] = [
        {"title": c.title, "unit": c.unit, "svg": Markup(charts.svg(c))}  # noqa: S704 - matplotlib escapes its texts
        for c in review.charts
    ]
    groups = [(s, WORDS[s], [f for f in review.findings if f.severity == s]) for s in ORDER]
    return environment.from_string(PAGE).render(
        r=review,
        title=TITLES[review.kind],
        groups=[g for g in groups if g[2]],
        charts=drawn,
        day=_day(review.at),
        before=_day(review.previous) if review.previous else "",
        safe=[f for f in review.findings if f.safe],
    )


def _day(at: datetime) -> str:
    return at.strftime("%A %-d %B %Y, %H:%M UTC")


def markdown(review: Review) -> str:
    """For a terminal, an e-mail, Prefect's artifact."""
    return "\n".join(_markdown(review)) + "\n"


def _markdown(review: Review) -> Iterator[str]:
    yield f"# {TITLES[review.kind]} of {review.system}: {review.verdict}"
    yield f"\n{_day(review.at)}. {_since(review)}\n"
    yield from (f"- {name}: {_cell(value)}" for name, value in review.facts.items())
    if review.applied:
        yield f"\n**Applied:** {_cell(review.applied)}"
    for severity in ORDER:
        found = [f for f in review.findings if f.severity == severity]
        if found:
            yield f"\n## {WORDS[severity]} ({len(found)})"
        for f in found:
            yield from _finding(f, new=f.key in review.new)
    for table in review.tables:
        yield from _table(table)


def _since(review: Review) -> str:
    if review.previous is None:
        return "The first review of its kind here: there is nothing to compare with."
    said = [f"{len(review.new)} new" if review.new else "", f"{len(review.gone)} gone" if review.gone else ""]
    return f"Since {_day(review.previous)}: {' and '.join(filter(None, said)) or 'the same findings'}."


def _finding(f: Finding, *, new: bool) -> Iterator[str]:
    yield f"\n### {_cell(f.title)}{' (new)' if new else ''}\n\n{_cell(f.evidence)}"
    if f.detail:
        yield f"\n{_fenced(f.detail)}"
    if f.fix and f.language == "text":
        yield f"\nTo do: {_cell(f.fix)}"
    elif f.fix:
        yield f"\n{_fenced(f.fix, f.language)}"
    if f.outcome:
        yield f"\nOutcome: {_cell(f.outcome)}"
    elif f.safe:
        yield "\nSafe: `--apply` does it within a maintenance window."


def _fenced(text: str, language: str = "") -> str:
    fence = "````" if "```" in text else "```"
    return f"{fence}{language}\n{text}\n{fence}"


def _table(table: Table) -> Iterator[str]:
    yield f"\n## {table.title}\n"
    if not table.rows:
        yield table.note or "Nothing."
        return
    yield "| " + " | ".join(table.columns) + " |"
    yield "|" + "|".join("---:" if i in table.right else "---" for i in range(len(table.columns))) + "|"
    yield from ("| " + " | ".join(_cell(c) for c in row) + " |" for row in table.rows)
    if table.note:
        yield f"\n{table.note}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
