"""The judgement of reviews: advice, forecasts, the simulated policy, windows, holds, what changed, what is rendered."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace

import pytest

from flows.engine import alive, maintenance, places
from flows.engine.maintenance import Maintenance, Window
from flows.intake import gates_of_alert
from flows.reviews import (
    advice,
    annual,
    applying,
    charts,
    figures,
    keeping,
    load,
    monthly,
    policy,
    render,
    run,
    weekly,
)
from flows.reviews.finding import Chart, Finding, Line, Review, Table, ordered
from flows.reviews.forecast import Forecast, Point, forecast
from flows.reviews.looking import EndOfLife, endpoints, secrets
from flows.reviews.monthly import Outlook
from tasks.capacity._plan import AutoScaling
from tasks.database._workload import IndexUse, Statement, TableUse, Workload
from tasks.errors import SafetyRefusal
from tasks.metrics.protocol import Series

NOW = datetime(2026, 11, 26, 6, tzinfo=UTC)


def statement(**more):
    given = {"id": "1", "text": "SELECT 1 FROM t WHERE a = $1", "calls": 100, "total_s": 30.0, "mean_s": 0.3}
    rest = {"worst_s": 1.0, "rows": 100, "hit": 9, "read": 1, "temp": 0, "share": 50.0}
    return Statement(**{**given, **rest, **more})


def table(**more):
    given = {"table": "public.t", "rows": 100_000, "bytes": 10**7, "scans": 50, "scanned_rows": 5_000_000}
    rest = {"index_scans": 0, "dead": 0, "changed": 0, "vacuum_at": 1000.0, "analyze_at": 500.0, "vacuumed_at": NOW}
    return TableUse(**{**given, **rest, "analyzed_at": NOW, "frozen_age": 10, "ours": True, **more})


def index(name="public.i", **more):
    given = {"table": "public.t", "bytes": 2_000_000, "scans": 5, "wanted": False, "valid": True}
    return IndexUse(**{"index": name, **given, "key": name, "definition": f"CREATE INDEX {name}", **more})


def work(**more):
    given = {"node": "pg1", "at": NOW, "since": NOW - timedelta(days=30), "version": "15.1"}
    rest = {"statements": (), "tables": (), "indexes": (), "hit_ratio": 99.9, "cache_bytes": 2**25}
    sizes = {"database_bytes": 2**26, "connections": 10, "idle": 1, "max_connections": 100}
    return Workload(**{**given, **rest, **sizes, **more})


def keys(findings):
    return [f.key for f in findings]


SCAN = {
    "Node Type": "Aggregate",
    "Total Cost": 10.0,
    "Plan Rows": 1,
    "Plans": [
        {"Node Type": "Seq Scan", "Relation Name": "t", "Total Cost": 9.0, "Plan Rows": 20, "Filter": "(a = $1)"}
    ],
}


def test_a_healthy_database_gives_no_finding():
    assert advice.database(work(tables=(table(),), indexes=(index(),)), {}) == []


def test_an_index_is_advised_for_a_big_table_that_a_selective_statement_reads_whole():
    found = list(advice.missing_indexes(work(statements=(statement(),), tables=(table(),)), {"1": SCAN}))
    assert keys(found) == ["missing-index public.t a"]
    assert "CREATE INDEX CONCURRENTLY ON public.t (a);" in found[0].fix
    assert not found[0].safe  # an index costs every write: for people to decide


@pytest.mark.parametrize(
    ("why", "rows", "plan"),
    [
        ("a small table", 900, 20),
        ("a filter that leaves much", 100_000, 50_000),
    ],
)
def test_no_index_is_advised_for(why, rows, plan):
    scan = {**SCAN, "Plans": [{**SCAN["Plans"][0], "Plan Rows": plan}]}
    asked = work(statements=(statement(),), tables=(table(rows=rows),))
    assert list(advice.missing_indexes(asked, {"1": scan})) == []


def test_equality_comes_before_the_range_and_a_pattern_gives_no_advice():
    def advised(filtered):
        scan = {**SCAN, "Plans": [{**SCAN["Plans"][0], "Filter": filtered}]}
        return keys(advice.missing_indexes(work(statements=(statement(),), tables=(table(),)), {"1": scan}))

    assert advised("((at > $1) AND (venue_id = $2) AND (status = $3))") == ["missing-index public.t venue_id,status,at"]
    assert advised("(name ~~ $1)") == []


def test_a_slow_statement_has_its_plan_and_says_why_it_has_none():
    asked = work(statements=(statement(), statement(id="2"), statement(id="3", mean_s=0.001, share=1.0)))
    with_plan, without = advice.slow(asked, {"1": SCAN, "2": "function is not unique"})
    assert "Seq Scan on t (cost 9, rows 20)" in with_plan.detail
    assert "no plan: function is not unique" in without.detail


def test_of_two_equal_indexes_the_one_that_enforces_something_stays():
    same = (index("public.a", key="k", scans=900), index("public.pk", key="k", wanted=True, scans=0))
    found = list(advice.indexes(work(indexes=same)))
    assert keys(found) == ["duplicate-index public.a"]
    assert "back: CREATE INDEX public.a" in found[0].fix


def test_an_unused_index_is_only_dropped_when_the_counters_are_old_enough():
    never = (index(scans=0), index("public.u", scans=0, wanted=True))
    (proven,) = advice.indexes(work(indexes=never))
    assert proven.fix.startswith("DROP INDEX CONCURRENTLY public.i;")
    for since in (NOW - timedelta(days=1), None):
        (perhaps,) = advice.indexes(work(indexes=never, since=since))
        assert perhaps.severity == "unknown"
        assert "DROP" not in perhaps.fix


def test_an_invalid_and_a_bloated_index_are_built_anew():
    found = list(advice.indexes(work(indexes=(index(valid=False), index("public.b", wasted=80.0)))))
    assert keys(found) == ["invalid-index public.i", "bloated-index public.b"]
    assert all(f.fix.startswith("REINDEX INDEX CONCURRENTLY") for f in found)
    assert list(advice.indexes(work(indexes=(index(wasted=80.0, bytes=9000),)))) == []


def test_a_vacuum_is_due_by_the_servers_own_rule_and_safe_only_where_it_is_ours():
    (due,) = advice.upkeep(work(tables=(table(dead=1001), table(table="public.fine", dead=999))))
    assert (due.key, due.safe, due.target) == ("vacuum-due public.t", True, ("database", "pg1", "public.t"))
    assert "FULL" not in due.fix
    (theirs,) = advice.upkeep(work(tables=(table(dead=1001, ours=False),)))
    assert not theirs.safe


def test_wraparound_is_told_long_before_it_comes():
    severities = [
        f.severity
        for age in (10**8, 3 * 10**8, 15 * 10**8)
        for f in advice.upkeep(work(tables=(table(frozen_age=age),)))
    ]
    assert severities == ["warning", "critical"]


def test_what_could_not_be_read_is_unknown_with_what_to_grant():
    found = advice.database(work(missing={"statements": "relation does not exist"}, hit_ratio=None), {})
    assert [(f.key, f.severity) for f in found] == [("unread statements", "unknown"), ("cache-hit-ratio", "unknown")]
    assert "CREATE EXTENSION pg_stat_statements" in found[0].fix


def growing(count, a_day, begin=50.0, step_s=3600.0, noise=0.2):
    return tuple(
        (NOW + timedelta(seconds=i * step_s), begin + a_day * i * step_s / 86_400 + noise * math.sin(7.3 * i))
        for i in range(count)
    )


def test_a_forecast_gives_the_day_of_the_limit_within_an_interval():
    found = forecast(growing(200, 1.0), 3600.0, 90 * 86_400.0, 62.0)
    assert isinstance(found, Forecast)
    truly = NOW + timedelta(days=12)
    assert found.earliest <= found.reached
    assert abs(found.reached - truly) < timedelta(days=1.5)
    assert all(p.low <= p.middle <= p.high for p in found.points)
    assert "exponential smoothing" in found.how


def test_what_does_not_grow_reaches_nothing_and_a_constant_is_no_error():
    flat = forecast(growing(100, 0.0, noise=0.0), 3600.0, 90 * 86_400.0, 90.0)
    assert (flat.earliest, flat.reached, flat.how) == (None, None, "it never changed")


def test_a_forecast_goes_no_further_ahead_than_its_record_goes_back():
    samples = growing(50, 1.0)
    found = forecast(samples, 3600.0, 90 * 86_400.0, None)
    assert found.points[-1].at - samples[-1][0] <= samples[-1][0] - samples[0][0]


def test_few_points_give_a_line_and_too_few_give_nothing():
    assert "straight line" in forecast(growing(12, 1.0), 3600.0, 86_400.0, 90.0).how
    assert forecast(growing(3, 1.0), 3600.0, 86_400.0, 90.0) == "3 samples, 8 at the least are asked for"


def test_a_gap_is_no_growth():
    samples = growing(200, 1.0, noise=0.05)
    gap = samples[:60] + samples[120:]
    assert abs(forecast(gap, 3600.0, 30 * 86_400.0, 62.0).reached - (NOW + timedelta(days=12))) < timedelta(days=2)


def outlook(future, limit=90.0):
    return Outlook(Series("disk_usage", "west", growing(10, 1.0), 3600.0), limit, "full", future)


def test_a_limit_that_is_near_is_worse_than_one_that_is_far_and_not_telling_is_unknown():
    def future(days):
        at = NOW + timedelta(days=days)
        return Forecast((Point(at, 1.0, 0.0, 2.0),), 1.0, "a model", 90.0, at, at, None)

    severities = [f.severity for days in (3, 20, 60) for f in monthly.judge(outlook(future(days)), NOW)]
    assert severities == ["critical", "warning", "warning"]
    assert [f.severity for f in monthly.judge(outlook("too few"), NOW)] == ["unknown"]


def test_headroom_counts_the_load_of_both_sites_and_a_site_that_is_not_measured_is_unknown():
    system = SimpleNamespace(
        sites={"west": 1, "east": 1},
        scaling=None,
        monitoring=None,
        database_monitoring=None,
        cost_monitoring=None,
    )

    def found(**sites):
        series = tuple(Series("cpu_usage", s, ((NOW, v),) * 20, 60.0) for s, v in sites.items())
        return [f for f, _ in monthly.headroom(load.Recorded(1.0, {"cpu_usage": series}), system) if f]

    assert [f.severity for f in found(west=40.0, east=30.0)] == ["info"]
    assert [f.severity for f in found(west=60.0, east=50.0)] == ["critical"]
    assert [f.severity for f in found(west=60.0)] == ["unknown"]


PLAN = AutoScaling.model_validate(
    {
        "min_instances": 2,
        "max_instances": 6,
        "target_cpu_utilization": "70%",
        "cooldown_period": 300,
        "scale_up": {"adjustment": "+2", "cooldown": 300},
        "scale_down": {"adjustment": "-1", "cooldown": 600},
    }
)


def minutes(*loads):
    return [(NOW + timedelta(minutes=i), v) for i, v in enumerate(loads)]


def test_the_policy_adds_waits_for_its_cool_down_and_takes_away_what_the_rest_can_carry():
    played = policy.play(PLAN, minutes(*[100] * 3, *[400] * 12, *[50] * 40))
    counts = [int(c) for _, c in played.counts]
    assert counts[2] == 2
    assert counts[3] == 4  # at once
    assert counts[7] == 4  # in the cool-down
    assert counts[8] == 6
    assert max(counts) <= 6
    assert counts[-1] == 2
    assert played.changes == 6


def test_time_at_the_maximum_above_the_target_is_counted():
    assert policy.play(PLAN, minutes(*[900] * 30)).full_s > 600
    assert policy.play(PLAN, minutes(*[100] * 30)).full_s == 0


WINDOW = Window(cron="0 3 * * 0", duration="2h", timezone="Europe/Berlin")


@pytest.mark.parametrize(
    ("at", "opened"),
    [
        ("2026-11-29T01:59:59+00:00", False),
        ("2026-11-29T02:00:00+00:00", True),
        ("2026-11-29T03:59:59+00:00", True),
        ("2026-11-29T04:00:00+00:00", False),
        ("2026-07-05T01:00:00+00:00", True),  # summer time
    ],
)
def test_a_window_opens_by_its_own_time_zone(at, opened):
    assert (WINDOW.open_until(datetime.fromisoformat(at)) is not None) is opened


def test_outside_of_the_window_nothing_is_applied_and_it_says_when_it_opens():
    with pytest.raises(SafetyRefusal, match="next opens 2026-11-29T03:00"):
        Maintenance(windows=(WINDOW,)).must_be_open("shop", NOW)
    with pytest.raises(SafetyRefusal, match="has no maintenance window"):
        Maintenance().must_be_open("shop", NOW)


@pytest.mark.parametrize("wrong", [{"cron": "every night"}, {"cron": "0 3 * * 0", "timezone": "Mars/Olympus"}])
def test_a_window_that_is_none_is_told_when_the_file_loads(wrong):
    with pytest.raises(ValueError, match=r"no cron|no time zone"):
        Window(**{"duration": "1h", **wrong})


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("RELIGHT_STATE", str(tmp_path))
    return tmp_path


def test_a_hold_counts_while_it_is_held_and_is_always_lifted(state):
    until = NOW + timedelta(hours=1)

    def fails():
        with maintenance.hold("shop", "vacuum", "me", until):
            assert maintenance.held("shop", NOW).why == "vacuum"
            assert maintenance.held("other", NOW) is None
            assert maintenance.held("shop", until) is None  # its time is up
            with pytest.raises(SafetyRefusal, match="being worked on"), maintenance.hold("shop", "two", "me", until):
                pass
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert maintenance.held("shop", NOW) is None


def test_a_hold_ends_with_its_process_however_that_ends(state):
    code = (
        "import os, signal\nfrom datetime import UTC, datetime\nfrom flows.engine import maintenance\n"
        "with maintenance.hold('shop', 'vacuum', 'me', datetime(2100, 1, 1, tzinfo=UTC)):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=places.PARENT, check=False).returncode == -9
    assert (maintenance.folder("shop") / "hold.json").exists()  # nothing tidied up
    assert maintenance.held("shop", NOW) is None


def test_a_change_is_refused_while_paused_during_a_run_and_after_the_window(state):
    until = NOW + timedelta(hours=1)
    maintenance.guard("shop", NOW, until)
    with pytest.raises(SafetyRefusal, match="closed"):
        maintenance.guard("shop", until, until)
    place = state / "systems" / "shop"
    place.mkdir(parents=True)
    (place / "lease.json").write_text(json.dumps({"epoch": 3, "run_id": "run-1"}))
    (state / "runs" / "run-1").mkdir(parents=True)
    maintenance.guard("shop", NOW, until)  # that run is over
    with alive.hold(state / "runs" / "run-1"), pytest.raises(SafetyRefusal, match=r"run-1 .* goes on"):
        maintenance.guard("shop", NOW, until)
    (place / "paused").write_text("the audit\n")
    with pytest.raises(SafetyRefusal, match="is paused: the audit"):
        maintenance.guard("shop", NOW, until)


def judged(outcome):
    metric, reading, rule = (
        SimpleNamespace(name="cpu_usage"),
        SimpleNamespace(site="west"),
        SimpleNamespace(text="> 85%"),
    )
    return SimpleNamespace(metric=metric, reading=reading, crossed=(rule,), outcome=outcome)


def test_an_alarm_stops_maintenance_and_a_warning_does_not():
    applying.calm((judged("warning"), judged("unknown")))
    with pytest.raises(applying.AlarmFired, match="cpu_usage at west"):
        applying.calm((judged("critical"),))


def review(*findings, at=NOW):
    return Review("weekly", "shop", at, ordered(findings))


def test_the_next_review_says_what_is_new_what_is_worse_and_what_is_gone(state):
    first = review(Finding("a", "info", "A", "x"), Finding("b", "critical", "B", "x"), Finding("c", "info", "C", "x"))
    assert keeping.compared(first, None) == first
    second = review(Finding("a", "warning", "A", "x"), Finding("b", "info", "B", "x"), Finding("d", "info", "D", "x"))
    found = keeping.compared(second, first.as_json())
    assert (found.new, found.gone, found.previous) == (("a", "d"), ("C (info)",), NOW)


def test_a_review_is_kept_in_three_forms_and_a_broken_one_is_passed_over(state):
    folder = keeping.new_folder("shop", "weekly", NOW)
    keeping.save(review(Finding("a", "info", "A", "x")), folder)
    assert sorted(p.name for p in folder.iterdir()) == ["review.html", "review.json", "review.md"]
    broken = keeping.new_folder("shop", "weekly", NOW + timedelta(days=7))
    (broken / "review.json").write_text("{")
    assert keeping.last("shop", "weekly")["verdict"] == "1 note"


def test_the_page_escapes_what_others_wrote_and_loads_nothing():
    evil = Finding("k", "warning", "<script>alert(1)</script>", "a | b", "SELECT '<b>';", "sql", detail="```</pre>")
    chart = Chart("Load <i>", "%", (Line("west <b>", ((NOW, 1.0), (NOW + timedelta(hours=1), 2.0))),), {"warning": 2.0})
    made = replace(review(evil), charts=(chart,), tables=(Table("T", ("a",), (("<td>",),)),))
    page = render.html(made)
    assert "<script" not in page
    assert "<b>'" not in page
    assert "west &lt;b&gt;" in page
    assert 'src="http' not in page
    assert "````" in render.markdown(made)
    assert "| &lt;td> |" in render.markdown(made)


def test_what_ends_soon_is_told_and_what_is_not_in_the_table_is_unknown():
    ends = EndOfLife(
        date(2026, 11, 1), {"postgresql": {"14": date(2026, 11, 12), "15": date(2027, 3, 1)}}, {"postgresql": "s"}
    )

    def severity(version):
        return [f.severity for f in annual.aging(ends, "postgresql", version, ["pg1"], NOW)]

    assert (severity("14.9"), severity("15.2"), severity("9.6")) == (["critical"], ["warning"], ["unknown"])


def test_endpoints_of_settings():
    settings = {"url": "https://a.example/x", "nodes": [{"address": "10.0.0.1:5432"}, "file:/x:1", "dba"], "n": 3}
    assert sorted(endpoints(settings)) == [("10.0.0.1", 5432, False), ("a.example", 443, True)]


def test_a_secret_that_everybody_can_read_is_told_and_never_opened(tmp_path):
    file = tmp_path / "s"
    file.write_text("hush")
    file.chmod(0o644)
    (found, away) = secrets({"password": f"file:{file}", "other": "file:/nowhere/x"})
    assert "everybody" in found.open_to
    assert away.changed is None


def test_a_hold_makes_automatic_runs_ask_a_person():
    def said(working):
        facts = SimpleNamespace(maintenance=working, now=NOW)
        return gates_of_alert.window(
            SimpleNamespace(facts=facts, loaded=SimpleNamespace(triggers=SimpleNamespace(windows=())))
        )

    assert said("").answer == "pass"
    held = said("weekly review applies 1 safe fixes, until 07:00 at the latest")
    assert (held.answer, "weekly review" in held.why) == ("needs-approval", True)


def test_figures():
    assert [figures.size(n) for n in (0, 999, 1500, 41_000_000)] == ["0 B", "999 B", "1.5 kB", "41 MB"]
    assert [figures.seconds(s) for s in (0.0008, 125, 957 * 3600)] == ["0.8 ms", "2m5s", "40d"]
    assert [figures.number(n) for n in (5, 9999, 12_345, 1_600_000)] == ["5", "9,999", "12.3 k", "1.6 M"]


def test_a_trend_is_only_told_of_a_record_that_covers_the_window():
    values = [0.1] * 20 + [0.3] * 20
    samples = tuple((NOW + timedelta(minutes=i), v) for i, v in enumerate(values))
    found = {"request_latency": (Series("request_latency", "west", samples, 60.0),)}
    assert [f.severity for f in load.trend(load.Recorded(2400.0, found), "request_latency")] == ["warning"]
    assert list(load.trend(load.Recorded(86_400.0, found), "request_latency")) == []


def test_a_chart_of_any_length_has_its_ticks():
    for span_s in (0, 1, 50, 163, 220, 299, 3000, 11_000, 80_000, 10**6, 9 * 10**6, 9 * 10**7):
        points = ((NOW, 1.0), (NOW + timedelta(seconds=span_s), 2.0))
        assert charts.svg(Chart("t", "%", (Line("west", points),))).startswith("<svg")


def test_a_record_that_was_not_read_is_told_though_one_site_is_known_now():
    def judged(site, outcome, why=""):
        metric, reading = SimpleNamespace(name="error_rate"), SimpleNamespace(site=site)
        return SimpleNamespace(metric=metric, reading=reading, outcome=outcome, why=why)

    recorded = load.Recorded(60.0, {}, {"error_rate": "west does not answer"})
    half = (judged("west", "unknown", "west does not answer"), judged("east", "ok"))
    (finding,) = load.unmeasured(recorded, half)
    assert finding.title == "not known: error_rate at west, error_rate over the window"
    (finding,) = load.unmeasured(recorded, (judged("west", "unknown", "no data"),))
    assert finding.title == "not known: error_rate at west", "it is told once"


def test_a_fix_says_where_its_runbook_is_missing():
    finding = Finding("k", "warning", "t", "e", "relight run scaling --system SYSTEM", "shell")
    assert run._named(finding, "venue", ["scaling"]).fix == "relight run scaling --system venue"
    assert "there is no runbook scaling yet" in run._named(finding, "venue", ["failover"]).fix


def test_a_database_that_tells_nothing_of_its_work_is_not_one_without_findings():
    system = SimpleNamespace(components={"database": SimpleNamespace(provider="database.supabase")})
    assert weekly._unasked("database", system).severity == "unknown"
