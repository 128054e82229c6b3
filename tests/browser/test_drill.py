"""A game day as a person sees it: the form, the approval, the run, its steps and its results, all in the browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from served import Serve, until

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]

STEPS = ("detect", "approve", "fence", "promote", "capacity", "shift", "dns", "verify-client")
RUN_S = 300_000
"""A drill's parts on a machine that is busy, in milliseconds."""


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect as expected  # noqa: PLC0415 - skipped, not broken, where it is missing

    return expected(locator)


def test_the_plan_of_a_failover_changes_nothing(site: Any) -> None:
    before, runs = site.runs("failover"), list(site.serve.state.glob("runs/*"))
    form = site.form("failover")
    expect(form.get_by_text("plan: observe every step and show what would be done; changes nothing.")).to_be_visible()
    form.get_by_role("textbox", name="System").fill("lab")
    site.choose("Act", "plan")
    site.choose("Mode", "graceful")
    approvals = form.get_by_role("spinbutton", name="Approvals")
    approvals.fill("-1")
    form.get_by_role("button", name="Submit").click()
    expect(approvals).to_be_focused()
    assert approvals.evaluate("e => e.validationMessage") == "Value must be greater than or equal to 0."
    site.shot("plan-refused")
    assert site.runs("failover") == before
    approvals.fill("0")
    run = site.start(form, "failover", set(before))
    site.open(f"runs/flow-run/{run}")
    expect(site.state()).to_have_text("Completed", timeout=RUN_S)
    site.open(f"runs/flow-run/{run}?tab=Artifacts")
    site.card("failover-lab-plan").click()
    site.page.get_by_role("link", name=re.compile("^[0-9a-f]{8}$")).first.click()
    main = site.page.locator("main")
    expect(main.get_by_text("Nothing was changed.", exact=True)).to_be_visible()
    expect(main.get_by_role("cell", name="promote", exact=True)).to_be_visible()
    site.shot("plan")
    assert list(site.serve.state.glob("runs/*")) == runs
    assert (site.reached, site.errors) == ([], [])


def venue(served: Serve) -> psycopg.Connection[Any]:
    """The lab's primary, as its administrator."""
    password = (Path(served.more["RELIGHT_LAB"]) / "secrets" / "postgres").read_text().strip()
    return psycopg.connect(host="127.0.1.31", user="postgres", dbname="venue", password=password, autocommit=True)


def schema(served: Serve) -> tuple[set[str], set[int]]:
    """Columns of the events, and the numbers of the migrations that are recorded as applied."""
    columns = "SELECT attname::text FROM pg_attribute WHERE attrelid = 'events'::regclass AND attnum > 0"
    with venue(served) as db:
        found = {c for (c,) in db.execute(columns)}
        if db.execute("SELECT to_regclass('relight_migrations')").fetchone() == (None,):
            return found, set()
        return found, {n for (n,) in db.execute("SELECT number FROM relight_migrations WHERE state = 'applied'")}


def ended(served: Serve, flow: str, **options: Any) -> tuple[str, str]:
    """State and message of a flow run that is started now."""
    run = served.press(f"{flow}/{flow}", {"system": "lab", **options})
    until(lambda: served.state_of(run)[0] in ("COMPLETED", "FAILED", "CRASHED"), RUN_S / 1000)
    return served.state_of(run)


def test_a_migration_fails_with_who_holds_its_lock_and_goes_well_once_it_is_free(served: Serve) -> None:
    """Here, where server and lab are up, and without the browser: before the drill takes the lab away."""
    assert served.folder is not None
    files, book = (served.folder / "runbooks" / "lab" / name for name in ("migrations", "migrate.yaml"))
    for file in files.iterdir():
        file.unlink()
    (files / "0001_seen.expand.sql").write_text("ALTER TABLE events ADD COLUMN seen text;\n")
    book.write_text(book.read_text().replace('release: "${release}"}', 'release: "${release}", tries: 2, pause: 1s}'))
    assert "tries: 2" in book.read_text()
    before = schema(served)
    with venue(served) as report, report.transaction():
        report.execute("SELECT count(*) FROM events")
        state, why = ended(served, "migrate")
        assert state == "FAILED"
        assert why.startswith("failed: apply: west-pg1: 0001_seen.expand.sql did not get its lock within 1 s"), why
        assert f"nothing of it was applied. It is held by pid {report.info.backend_pid} (" in why
    assert schema(served) == before
    assert ended(served, "migrate") == ("COMPLETED", "succeeded")
    assert schema(served) == (before[0] | {"seen"}, {1})
    assert ended(served, "pg-minor", switchover=False) == ("COMPLETED", "succeeded")


def test_a_drill_is_started_approved_and_watched_in_the_browser(site: Any) -> None:
    form = site.form("drill")
    for text in ("What is broken under load.", "0: nobody is asked.", "no acknowledged write may be lost"):
        expect(form.get_by_text(text)).to_be_visible()
    expect(form.get_by_role("button", name="Select Fault")).to_have_text("kill-primary")
    expect(form.get_by_role("switch", name="Synchronous")).to_be_checked()
    form.get_by_role("spinbutton", name="Approvals").fill("1")
    site.shot("drill-form")
    run = site.start(form, "drill", set())

    site.open(f"runs/flow-run/{run}")
    expect(site.state()).to_have_text("Paused", timeout=RUN_S)
    page = site.page
    site.logged(run, "Answer with Resume")
    site.open(f"runs/flow-run/{run}?tab=Logs")
    expect(page.get_by_text("Answer with Resume (in the menu ⋮ at the top right)")).to_be_visible()
    site.shot("paused")
    dialog = site.resume()
    expect(dialog.get_by_text("failover of lab, west → east (forced): yes or no?")).to_be_visible()
    for text in ("no acknowledged commit is lost", "objective of application: to be met by", "point of no return"):
        expect(dialog.get_by_text(text)).to_be_visible()
    # nothing chosen is no answer: the form says so, and the run waits
    dialog.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("'decision' is a required property")).to_be_visible()
    assert site.serve.state_of(run)[0] == "PAUSED"
    site.choose("Decision", "approve", dialog)
    site.choose("Name", "alice", dialog)
    dialog.get_by_role("textbox", name="Comment").fill("game day, as announced")
    site.shot("approval")
    site.submit(dialog, "Resume", lambda: site.serve.state_of(run)[0] != "PAUSED")

    expect(site.state()).to_have_text("Completed", timeout=RUN_S)
    site.open(f"runs/flow-run/{run}?tab=TaskRuns")
    tasks = page.get_by_role("tabpanel", name="Task Runs")
    for step in STEPS:
        expect(tasks.get_by_role("link", name=step, exact=True)).to_be_visible()
    expect(tasks.get_by_text("16 Task runs")).to_be_visible()
    site.shot("steps")
    _artifacts(site)
    (folder,) = site.serve.state.glob("runs/*-failover-*")
    answers = [r for r in _records(folder) if r["type"] == "approval"]
    assert [(r["by"], r["decision"], r["counted"]) for r in answers] == [("alice", "approve", True)]
    assert (site.reached, site.errors) == ([], [])


def _artifacts(site: Any) -> None:
    """What a person finds on the tab, and behind each card."""
    page = site.page
    page.get_by_role("tab", name="Artifacts").click()
    expect(site.card("failover-lab-rto")).to_contain_text("database")
    expect(site.card("failover-lab-rto")).to_contain_text("of 15m: met")
    expect(site.card("failover-lab-report")).to_contain_text("failover of lab, west → east: succeeded")
    expect(site.card("failover-lab-progress")).to_contain_text("failover of lab: west → east")
    site.shot("artifacts")
    for card, texts in (
        ("failover-lab-rto", ("application", "database", "storage", "15m")),
        ("failover-lab-report", ("failover of lab: succeeded", "What the clients saw", "approved by alice")),
        ("failover-lab-progress", ("failover of lab: west → east",)),
    ):
        here = page.url
        site.card(card).click()
        page.get_by_role("link", name=re.compile("^[0-9a-f]{8}$")).first.click()
        for text in texts:
            expect(page.locator("main").get_by_text(text).first).to_be_visible()
        site.shot(card.removeprefix("failover-lab-"))
        page.goto(here)


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
