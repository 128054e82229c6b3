"""What each drill cost: from journals, and never smaller than it was."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from flows import cli_metrics
from flows.engine import drillcosts, places
from flows.engine.journal import FileJournal
from flows.engine.thresholds import Prices
from tasks.errors import BadInput

PRICES = Prices(instance_hour=0.1)
SEALS = ("seq", "at", "type", "prev", "sha256")
RECORDED = {
    "usd": 0.5,
    "lines": [{"what": "x", "quantity": 5.0, "unit": "h", "usd": 0.5, "why": "", "goes_on_usd_h": 0.2}],
}


@pytest.fixture
def keep(kit, tmp_path, monkeypatch):
    """Keeps the journal of a run that began instances, or did not, in a state folder of the test's own."""
    monkeypatch.setenv("RELIGHT_STATE", str(tmp_path / "state"))
    played = kit.play(kit.plan(kit.step("grow", timeout_s=60.0)), kit.World(script={"apply grow": ["slow:20"]}))

    def kept(run, trigger, *, system="shop", day=1, running=3, measured=None):
        book = FileJournal(places.state_home() / "runs" / run / "journal.jsonl")

        def on(text):
            return datetime.fromisoformat(text).replace(year=2026, month=11, day=day)

        for record in played.records:
            body = {k: v for k, v in record.items() if k not in SEALS}
            body |= {k: on(body[k]).isoformat() for k in ("started_at",) if k in body}
            if record["type"] == "run_started":
                body |= {"run_id": run, "system": system, "trigger": trigger}
                body["plan"] = {"steps": [{**s, "action": "capacity.ensure"} for s in record["plan"]["steps"]]}
            elif record["type"] == "outcome":
                body["facts"] = {"site": "east", "running_before": 1, "running": running}
            book.append(on(record["at"]), record["type"], **body)
        if measured is not None:
            book.append(on(record["at"]), "measured", **measured)
        book.close()
        return book.path

    return kept


def test_every_drill_of_the_system_is_listed_newest_first_and_nothing_else(keep):
    keep("old", "drill kill-primary", day=1, running=1)
    keep("new", "drill site-gone", day=2, measured={"load": {"lost": 0}, "cost": RECORDED})
    keep("by-alert", "alert prometheus", day=3, measured={"load": {"lost": 0}, "cost": RECORDED})
    keep("real", "cli", day=4)
    keep("other", "drill site-gone", system="bank")
    (places.state_home() / "runs" / "never-began").mkdir()
    FileJournal(places.state_home() / "runs" / "never-began" / "journal.jsonl").close()
    found = drillcosts.listed("shop", PRICES)
    assert [(d.run_id, d.recorded, d.cost["usd"]) for d in found.drills] == [
        ("by-alert", True, 0.5),
        ("new", True, 0.5),
        ("old", False, 0),
    ]
    assert (found.usd, found.unread, found.drills[0].goes_on_usd_h) == (1.0, {}, 0.2)


def test_one_that_was_not_counted_is_priced_now_and_without_a_price_the_sum_is_unknown(keep):
    keep("a", "drill none", measured={"load": {"lost": 0}, "cost": RECORDED})
    keep("b", "drill none", day=2)
    priced = drillcosts.listed("shop", PRICES)
    assert priced.drills[0].cost["usd"] == pytest.approx(2 * 20 / 3600 * 0.1, rel=0.2)
    unpriced = drillcosts.listed("shop", None)
    assert (unpriced.usd, unpriced.known_usd) == (None, 0.5)


def test_a_journal_that_was_changed_is_named_and_makes_the_sum_unknown(keep):
    keep("good", "drill none", running=1)
    path = keep("bad", "drill none", running=1)
    path.write_text(path.read_text().replace("grow", "graw", 1))
    found = drillcosts.listed("shop", PRICES)
    assert [d.run_id for d in found.drills] == ["good"]
    assert "bad" in found.unread
    assert found.usd is None


def test_the_command(keep, tmp_path, capsys):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "system.yaml").write_text("system: shop\nsites: {west: {}, east: {}}\n")

    def said(**more):
        given = {"standby": None, "days": 28, "run_id": None, "drills": True, "as_json": False}
        cli_metrics.cost(str(folder), **{**given, **more})
        return capsys.readouterr().out

    assert "0 drills in this state folder; in all: 0.0000 USD" in said()
    keep("counted", "drill site-gone", day=2, measured={"load": {"lost": 0}, "cost": RECORDED})
    keep("failed", "drill none", day=1)
    text = said()
    assert "drill site-gone" in text
    assert "2 drills in this state folder; in all: unknown, 0.5000 USD of it known" in text
    assert "unknown because cost_monitoring.prices has no instance_hour" in text
    found = json.loads(said(as_json=True))
    assert (found["usd"], [d["run_id"] for d in found["drills"]]) == (None, ["counted", "failed"])
    assert found["drills"][0]["goes_on_usd_h"] == 0.2
    with pytest.raises(BadInput, match="say one of them"):
        said(run_id="last")
