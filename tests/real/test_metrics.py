"""Metrics of the real lab: its exporters, Prometheus, the evaluation of the system file, and rules that come back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess

import pytest
from hanging import hang
from patience import until
from receiving import of_the_lab

from flows.engine import places, system
from tasks.clock import LoopClock
from tasks.contract import Context, RunInfo, Surroundings
from tasks.errors import BadInput, Breached, NotYet, Rejected, Unreachable
from tasks.metrics.actions import Within
from tasks.metrics.prometheus import Prometheus, PrometheusSettings

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

URL = "http://127.0.3.90:9090"
MEASURED = {
    "cpu_usage",
    "memory_usage",
    "network_traffic",
    "request_latency",
    "error_rate",
    "concurrent_users",
    "connection_count",
    "query_performance",
    "replication_lag",
    "disk_usage",
}


def provider(**settings):
    around = Surroundings("lab", "metrics", ("west", "east"), LoopClock(), lambda name: name)
    return Prometheus(PrometheusSettings(**{"url": URL, "timeout": "30s", **settings}), around)


def now(metric, over_s=None, **settings):
    async def ask():
        source = provider(**settings)
        try:
            return {r.site: r for r in await source.now(metric, over_s)}
        finally:
            await source.aclose()

    return asyncio.run(ask())


def known(metric, site="west"):
    """A reading with a value of a moment ago: a scrape that is late leaves none."""

    def look():
        reading = now(metric)[site]
        return reading if reading.known and reading.age_s < 15 else None

    return until(look, what=f"{metric} of {site} is known")


def process(lab, name):
    found = json.loads(lab.relight("lab", "status", "--json").out)["processes"]
    return next(p["pid"] for p in found if p["name"] == name)


@contextlib.contextmanager
def stopped(pid):
    hang(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def measured(lab):
    """The lab, once every metric of the active site has a value."""
    until(lambda: all(now(m)["west"].known for m in MEASURED), 90)
    return lab


def test_every_metric_that_the_lab_exports_is_read_with_its_time(measured):
    for metric in sorted(MEASURED):
        reading = known(metric)
        assert reading.at.tzinfo is not None
        assert reading.age_s >= 0, reading


def test_connections_are_a_share_of_the_limit_and_the_lag_of_a_healthy_replica_is_nothing(measured):
    assert 0 < known("connection_count").value < 100
    until(lambda: known("lag", "east").value < 5)


def test_a_window_gives_a_series_without_invented_samples(measured):
    found = asyncio.run(_series("concurrent_users", 60, 5))
    west = next(s for s in found if s.site == "west")
    assert west.samples
    assert [at for at, _ in west.samples] == sorted(at for at, _ in west.samples)
    assert len(west.samples) <= 13


async def _series(metric, window_s, step_s):
    return await provider().series(metric, window_s, step_s)


def test_a_sample_that_is_too_old_is_unknown(measured):
    reading = until(lambda: (r := now("connection_count", stale_after=0.001)["west"]).state == "stale" and r)
    assert not reading.known
    assert reading.value is None
    assert "old" in reading.why


def test_a_check_looks_back_as_far_as_it_says_and_tells_where_that_is_scraped_too_seldom(measured):
    assert until(lambda: (r := now("request_latency", 10)["west"]).known and r).query.count("[10s]") == 1
    few = now("request_latency", 2)["west"]  # scraped every second
    assert (few.state, few.value) == ("no-data", None)
    assert "scraped too seldom" in few.why
    with pytest.raises(BadInput, match="of a moment"):
        now("concurrent_users", 10)


def test_nan_and_nothing_are_unknown_and_never_zero(measured):
    nan = now("error_rate", queries={"error_rate": {"expr": "vector(0) / vector(0)"}}, whole_system=["error_rate"])[""]
    assert (nan.state, nan.value) == ("not-a-number", None)
    nothing = now("error_rate", queries={"error_rate": {"expr": "nobody_exports_this"}})["west"]
    assert (nothing.state, nothing.value) == ("no-data", None)


def test_a_query_that_prometheus_refuses_is_an_error_with_its_words(measured):
    with pytest.raises(Rejected, match="parse error"):
        now("error_rate", queries={"error_rate": {"expr": "sum by ("}})


def test_a_prometheus_that_hangs_makes_everything_unknown(measured):
    with stopped(process(measured, "prometheus")):
        reading = now("cpu_usage", timeout="300ms")["west"]
        assert (reading.state, reading.value) == ("no-answer", None)
        with pytest.raises(Unreachable):
            asyncio.run(_hanging())
        told = measured.relight("metrics", "--system", "lab", "--json")
    assert told.code == 0
    assert told.json["outcome"] == "unknown"
    assert {m["outcome"] for m in told.json["metrics"]} == {"unknown"}


async def _hanging():
    await provider(timeout="300ms").series("cpu_usage", 60, 5)


def test_the_system_file_is_evaluated_and_crossing_is_told(measured, tmp_path):
    until(lambda: all(now(m)["west"].known for m in MEASURED), 60)

    def evaluated():
        strict = measured.relight("metrics", "--system", "lab", "--json", "--strict")
        assert strict.code == 1, "the cost is not measured here: that is unknown, and not fine"
        found = {(m["metric"], m["site"]): m for m in strict.json["metrics"]}
        told = all(found[m, "west"]["outcome"] != "unknown" for m in ("cpu_usage", "connection_count"))
        return found if told else None

    fine = until(evaluated)
    assert fine["cpu_usage", "west"]["outcome"] in ("ok", "warning", "critical"), fine["cpu_usage", "west"]
    assert fine["connection_count", "west"]["outcome"] == "ok"
    assert fine["connection_count", "west"]["evidence"]["query"]
    assert fine["daily_cost", ""]["outcome"] == "unknown"

    which, system_file = ("connection_count", "west"), str(other(tmp_path))

    def crossed():
        done = measured.relight("metrics", "--system", system_file, "--json")
        found = next(m for m in done.json["metrics"] if (m["metric"], m["site"]) == which)
        return (done.code, found["outcome"], found["crossed"]) if found["outcome"] != "unknown" else None

    assert until(crossed) == (1, "critical", ["high-connections"])


def other(folder):
    """A copy of the lab's system in which having connections and users at all is too much."""
    text = (places.data("runbooks") / "lab" / "system.yaml").read_text()
    text = text.replace("connection_count > 90%", "connection_count > 0.1%").replace(
        "cpu_usage > 85%\n      severity: critical", "concurrent_users >= 0\n      severity: critical"
    )
    (folder / "system.yaml").write_text(text)
    system.load(folder / "system.yaml")
    return folder / "system.yaml"


def test_a_check_passes_only_while_the_value_is_known_and_below(measured):
    until(lambda: asyncio.run(_within("request_latency", "30s")).facts["reading"]["state"] == "ok")
    with pytest.raises((Breached, NotYet), match="not below"):  # the latter where the machine is slow
        asyncio.run(_apply("connection_count", "0.1%"))
    facts = asyncio.run(_apply("connection_count", "90%"))
    assert facts["held_s"] >= 0.5
    with stopped(process(measured, "prometheus")), pytest.raises(NotYet, match="unknown"):
        asyncio.run(_apply("connection_count", "90%", timeout="300ms", seconds=4.0))


def context(timeout="15s", seconds=60.0):
    clock = LoopClock()
    run = RunInfo("r", "lab", "b", "graceful", 1, clock.utc().isoformat())
    roles = {"target": "west", "west": "west", "east": "east"}
    source = provider(timeout=timeout, stale_after="60s")
    return Context(run, clock, roles, lambda _name: source, clock.monotonic() + seconds)


async def _within(metric, below):
    return await Within(metric=metric, below=below, **{"for": "500ms", "every": "100ms"}).confirm(context())


async def _apply(metric, below, **limits):
    check, ctx = Within(metric=metric, below=below, **{"for": "500ms", "every": "100ms"}), context(**limits)
    return await check.apply(ctx, await check.observe(ctx))


def test_promtool_takes_the_exported_rules(measured, tmp_path):
    file = tmp_path / "rules.yaml"
    done = measured.relight("rules", "export", "--system", "lab", "--format", "prometheus", "--out", str(file))
    assert done.code == 0, done.err
    assert "left out cost-increase: nothing says what 'threshold' is" in done.err
    checked = subprocess.run([_promtool(), "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    names = {r["alert"] for r in json.loads(file.read_text())["groups"][0]["rules"]}
    assert {"scaling-cpu-warning", "high-cpu", "high-latency", "replication-lag", "metric-unknown"} <= names


def _promtool():
    found = shutil.which("promtool")
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("promtool is not installed (apt-get install prometheus)")
    return found


def test_an_exported_rule_fires_and_comes_back_through_the_receiver(measured, tmp_path):
    rules = measured.home() / "ops" / "prometheus" / "exported.yaml"
    words = ("--for", "0s", "--every", "1s", "--out", str(rules))
    done = measured.relight("rules", "export", "--system", str(other(tmp_path)), *words)
    assert done.code == 0, done.err
    try:
        with of_the_lab({**os.environ, **measured.env}, tmp_path / "serve.log"):
            os.kill(process(measured, "prometheus"), signal.SIGHUP)
            found = until(lambda: _event(measured, "high-connections"), 60)
    finally:
        rules.unlink()
        os.kill(process(measured, "prometheus"), signal.SIGHUP)
    labels = found["event"]["labels"]
    assert labels["owner"] == "relight"
    assert labels["site"] == "west"
    assert {k: labels[k] for k in ("system", "severity", "component", "metric", "section")} == {
        "system": "lab",
        "severity": "critical",
        "component": "database",
        "metric": "connection_count",
        "section": "database_monitoring",
    }


def _event(lab, name):
    listed = lab.relight("inbox", "list", "--most", "100", "--json")
    events = listed.json if listed.code == 0 and listed.out else []
    return next((e for e in events if _is(e["event"]["labels"], name)), None)


def _is(labels, name):
    return (labels.get("alertname"), labels.get("owner"), labels.get("site")) == (name, "relight", "west")


def test_a_site_without_exporters_has_no_data(measured):
    """Last: it breaks the site."""
    measured.fault("site-gone")
    reading = until(lambda: (r := now("concurrent_users")["west"]).state == "no-data" and r, 30)
    assert reading.value is None
    assert until(lambda: now("concurrent_users")["east"].known)
