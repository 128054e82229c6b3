"""The endpoints' answers, as each sender needs them; and the desk: at most one run for each episode."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from flows.engine import handover, killswitch, places
from flows.intake import glass, rules, service
from flows.intake.desk import Desk, _writing, run_of
from flows.intake.event import Unavailable
from flows.intake.history import History
from flows.intake.inbox import Inbox
from flows.intake.receiver import Receiver, application
from flows.intake.rules import load
from tasks.errors import BadInput, LeaseHeld, RelightError, SafetyRefusal

TRIGGERS = """
sources:
  am: {source: alertmanager, tokens: ["env:AM_OLD", "env:AM_NEW"]}
  open: {source: alertmanager, unauthenticated: true}
rules:
  - {id: down, from: [am], match: {alertname: ["Down", "~Site.*"], system: toy}, run: wait, stage: auto}
  - {id: maybe, from: [am], match: {alertname: Maybe}, run: wait, stage: approve}
gates: {quorum: 1, confirm: {for: 0s, probes: 0}, references: [], ready_within: 0s, drill_within: 0s}
"""
BOOK = """
runbook: wait
steps:
  - {id: look, action: health.tcp, with: {address: "127.0.0.1:1"}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AM_OLD", "old-secret")
    monkeypatch.setenv("AM_NEW", "new-secret")
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "system.yaml").write_text("system: toy\nsites: {west: {}, east: {}}\n")
    (tmp_path / "toy" / "wait.yaml").write_text(BOOK)
    (tmp_path / "toy" / "triggers.yaml").write_text(TRIGGERS)
    return tmp_path / "toy"


@pytest.fixture
def inbox(tmp_path):
    one = Inbox(places.state_home() / "inbox.sqlite3")
    yield one
    one.close()


@pytest.fixture
def post(folder, inbox):
    """Posts to the application: (status, JSON)."""
    nudged = []

    async def preview(event):
        return {"outcome": "start", "alert": event.subject()}

    receiver = Receiver(service.endpoints([load(folder)], "127.0.0.1"), inbox, lambda: nudged.append(1), preview)
    app = application(receiver, lambda: {"ok": True})

    def send(body, path="/alerts/am", token="new-secret", method="POST", **headers):  # noqa: S107 - of this test
        async def ask():
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://relight") as client:
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                sent = {"authorization": f"Bearer {token}", **headers} if token else headers
                return await client.request(method, path, content=content, headers=sent)

        found = asyncio.run(ask())
        return found.status_code, found.json() if "json" in found.headers.get("content-type", "") else found.text

    send.nudged = nudged
    send.receiver = receiver
    return send


def body(name="Down", status="firing", start=None, **more):
    start = start or datetime.now(UTC)
    labels = {"alertname": name, "system": "toy", **more.pop("labels", {})}
    one = {"status": status, "labels": labels, "startsAt": start.isoformat(), "fingerprint": name}
    return {"version": "4", "status": status, "alerts": [one], **more}


# ---- answers ----


def test_taken_once_and_known_afterwards(post, inbox):
    what = body()
    assert post(what)[0] == 202
    status, said = post(what)
    assert (status, said["taken"]) == (200, "duplicate")
    status, said = post({**what, "groupKey": "another"})
    assert (status, said["taken"]) == (200, "known")
    assert len(History(inbox.file).entries()) == 2
    assert len(post.nudged) == 2


@pytest.mark.parametrize(
    ("shown", "path", "status"),
    [
        (("new-secret", {}), "/alerts/am", 202),
        (("old-secret", {}), "/alerts/am", 202),
        (("", {"x-relight-token": "old-secret"}), "/alerts/am", 202),
        (("", {"authorization": "Basic " + base64.b64encode(b"any:new-secret").decode()}), "/alerts/am", 202),
        (("", {}), "/alerts/am/new-secret", 202),
        (("", {}), "/alerts/am", 401),
        (("", {"authorization": "Basic ???"}), "/alerts/am", 401),
        (("wrong", {}), "/alerts/am", 403),
        (("new-secre", {}), "/alerts/am", 403),
        (("", {}), "/alerts/open", 202),
        (("new-secret", {}), "/alerts/nowhere", 404),
    ],
)
def test_who_may_deliver(post, inbox, shown, path, status):
    token, headers = shown
    assert post(body(), path, token, **headers)[0] == status
    assert len(History(inbox.file).entries()) == (status == 202)


@pytest.mark.parametrize(
    ("raw", "headers", "status"),
    [
        (b"", {}, 400),
        (b"{", {}, 400),
        (b'{"alerts": [], "alerts": []}', {}, 400),
        (b"\xff", {}, 400),
        (b"{}", {}, 400),
        (b"x" * ((1 << 20) + 1), {}, 413),
        (gzip.compress(b" " * (1 << 22)), {"content-encoding": "gzip"}, 413),
        (b"{}", {"content-encoding": "br"}, 415),
    ],
)
def test_bodies_that_are_not_taken(post, inbox, raw, headers, status):
    code, said = post(raw, **headers)
    assert code == status
    assert said["error"]
    assert History(inbox.file).entries() == []


def test_what_cannot_be_kept_is_asked_for_again(post, inbox, monkeypatch):
    async def ask(*_args):
        raise Unavailable("the disk is full", retry_s=7)

    monkeypatch.setattr(post.receiver, "_keep", ask)
    assert post(body())[0] == 503


def test_a_secret_that_cannot_be_read_is_asked_for_again(post, monkeypatch):
    monkeypatch.delenv("AM_OLD")
    assert post(body())[0] == 503


def test_a_test_delivery_is_answered_with_the_decision(post):
    # Alertmanager has no test button; a source that has one marks its alerts so
    class Testing(type(post.receiver.endpoints["am"])):
        def read(self, parsed, delivery):
            return tuple(a.model_copy(update={"test": "its Test button"}) for a in super().read(parsed, delivery))

    post.receiver.endpoints["am"] = Testing(post.receiver.endpoints["am"].settings)
    status, said = post(body())
    assert (status, said["taken"], said["would"][0]["outcome"]) == (200, "test", "start")


def test_stale_and_resolved_are_kept_and_nothing_more(post, monkeypatch):
    assert post(body("A", "resolved"))[1]["taken"] == "noted"

    class Queued(type(post.receiver.endpoints["am"])):
        def read(self, parsed, delivery):
            old = delivery.received_at - timedelta(hours=20)
            return tuple(a.model_copy(update={"observed_at": old}) for a in super().read(parsed, delivery))

    post.receiver.endpoints["am"] = Queued(post.receiver.endpoints["am"].settings)
    assert post(body("B"))[1]["taken"] == "stale"


def test_metrics_count_answers(post):
    post(body())
    post(body(), token="wrong")
    status, text = post(b"", "/metrics", method="GET")
    assert status == 200
    assert 'relight_deliveries_total{endpoint="am",status="202"} 1.0' in text
    assert 'relight_deliveries_total{endpoint="am",status="403"} 1.0' in text


# ---- triggers.yaml ----


def test_anybody_may_post_only_to_a_loopback_address(folder):
    with pytest.raises(BadInput, match="no loopback address"):
        service.endpoints([load(folder)], "0.0.0.0")  # noqa: S104 - refused


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("source: alertmanager", "source: alertmanger", "no source 'alertmanger'"),
        ("from: [am]", "from: [ma]", "no endpoint 'ma'"),
        ("run: wait", "run: wiat", "no runbook 'wiat'"),
        ("stage: auto", "stage: yes", "stage"),
        ('"~Site.*"', '"~Site("', "no regular expression"),
        ("env:AM_OLD", "hunter2", "reference to a secret"),
        ("unauthenticated", "unauthentic", "unauthentic"),
    ],
)
def test_a_mistake_in_triggers_has_its_place(folder, old, new, why):
    file = folder / "triggers.yaml"
    file.write_text(TRIGGERS.replace(old, new, 1))
    with pytest.raises(BadInput) as e:
        rules.load(folder)
    assert why in str(e.value)
    assert e.value.findings[0].line > 1


# ---- the desk ----


def desk(folder, inbox, start):
    return Desk(inbox, History(inbox.file), [load(folder)], start)


async def reached(_references, _seconds=1.0):
    return {"a": True, "b": True}


@pytest.fixture
def started(folder, inbox, monkeypatch):
    """A desk whose runs are only written down."""
    monkeypatch.setattr("flows.intake.gates.reached", reached)
    chain = tuple(g if g.__name__ != "quorum" else (lambda _asked: _passes("quorum")) for g in service.gates.CHAIN)
    monkeypatch.setattr("flows.intake.gates.CHAIN", chain)
    requests = []

    async def start(request):
        requests.append(request)
        return f"run-{len(requests)}"

    one = desk(folder, inbox, start)
    one.requests = requests
    return one


def _passes(gate):
    return service.gates.Said(gate, "pass", "for this test")


def look(one):
    asyncio.run(one.look())
    return {e.event.labels["alertname"]: e.outcome for e in reversed(one.history.entries())}


def test_an_alert_starts_one_run_however_often_it_is_told(post, started):
    start = datetime.now(UTC)
    post(body(start=start))
    post({**body(start=start), "groupKey": "again"})
    assert look(started)["Down"] == "known"
    (request,) = started.requests
    assert (request.runbook, request.automatic, request.trigger, request.mode) == ("wait", True, "alert", "forced")
    assert request.incident_started_at == start
    assert request.cause["rule"] == "down"
    post({**body(start=start), "groupKey": "once more"})
    look(started)
    assert len(started.requests) == 1


def test_what_no_rule_is_about_starts_nothing(post, started):
    post(body("Else"))
    post(body("Site-west", labels={"system": "other"}))
    assert look(started) == {"Else": "ignored", "Site-west": "ignored"}
    assert started.requests == []


def test_a_label_starts_with_the_whole_value(post, started):
    post(body("Site-west"))
    post(body("MySite-west"))
    assert look(started) == {"Site-west": "run", "MySite-west": "ignored"}


def test_a_run_that_is_refused_is_noted_with_why(post, started):
    async def refuse(_request):
        raise LeaseHeld("system toy already has a run: run-7")

    started.start = refuse
    post(body())
    assert look(started)["Down"] == "not started"
    assert "already has a run" in started.history.entries()[0].decision["why"]


def test_an_approval_starts_it_by_name_and_one_that_is_late_does_not(post, started):
    post(body("Maybe"))
    assert look(started)["Maybe"] == "ask"
    (entry,) = started.history.entries()
    assert asyncio.run(started.approved(entry, "J. Doe")) == "run-1"
    assert (started.requests[0].automatic, started.requests[0].operator) == (False, "J. Doe")
    assert started.history.entries()[0].decision["approved_by"] == "J. Doe"
    post(body("Maybe", start=datetime.now(UTC) - timedelta(seconds=1)))
    look(started)
    late = started.history.entries()[0]
    old = late.event.model_copy(update={"received_at": late.event.received_at - timedelta(minutes=16)})
    with pytest.raises(SafetyRefusal, match="too late"):
        asyncio.run(started.approved(type(late)(**{**vars(late), "event": old}), "J. Doe"))
    assert started.history.entries()[0].outcome == "not approved"
    assert len(started.requests) == 1


def test_an_approval_does_not_pass_what_a_gate_refuses(post, started):
    post(body("Maybe"))
    look(started)
    (entry,) = started.history.entries()
    post(body("Maybe", "resolved", start=entry.event.started_at))
    with pytest.raises(SafetyRefusal, match="ended"):
        asyncio.run(started.approved(entry, "J. Doe"))
    assert started.requests == []


def test_killed_between_decision_and_start_it_starts_once(post, started):
    async def die(_request):
        raise KeyboardInterrupt

    good, started.start = started.start, die
    post(body())
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(started.look())
    started.start = good
    asyncio.run(started.recover())
    assert len(started.requests) == 1
    assert started.history.entries()[0].run_id == "run-1"


def test_killed_between_start_and_its_note_it_is_found_by_its_episode(post, started):
    async def begin(request):
        folder = places.state_home() / "runs" / "run-x"
        folder.mkdir(parents=True)
        head = {"type": "run_started", "cause": dict(request.cause)}
        (folder / "journal.jsonl").write_text(json.dumps(head) + "\n")
        raise KeyboardInterrupt

    good, started.start = started.start, begin
    post(body())
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(started.look())
    started.start = good
    assert run_of(started.history.entries()[0].event.episode_key) == "run-x"
    asyncio.run(started.recover())
    assert started.requests == []
    assert started.history.entries()[0].run_id == "run-x"


def test_blind_until_the_watchdog_came_and_again_when_it_stays_away(post, started, folder):
    file = folder / "triggers.yaml"
    file.write_text(TRIGGERS.replace('"env:AM_NEW"]', '"env:AM_NEW"], watchdog: Watch, watchdog_every: 2m'))
    watching = load(folder)
    now = datetime.now(UTC)
    assert "came never" in started.gatherer.blind(watching, now)
    post(body("Watch"))
    assert started.gatherer.blind(watching, now) == ""
    assert "ago" in started.gatherer.blind(watching, now + timedelta(minutes=3))


def test_one_that_only_says_what_it_would_do_writes_nothing(folder):
    one = Desk(None, History(Path("/nowhere")), [load(folder)], None)
    with pytest.raises(RelightError):
        _writing(one)


def test_what_was_left_out_in_part_is_decided_about_when_it_is_told_whole(post, started):
    start = datetime.now(UTC)
    post({**body(start=start), "truncatedAlerts": 2})
    assert look(started)["Down"] == "refused"
    post({**body(start=start), "groupKey": "whole"})
    look(started)
    assert [e.outcome for e in reversed(started.history.entries())] == ["refused", "run"]
    post({**body(start=start), "groupKey": "again"})
    look(started)
    assert (started.history.entries()[0].outcome, len(started.requests)) == ("known", 1)


def test_one_that_ends_before_anybody_approved_waits_no_longer(post, started):
    start = datetime.now(UTC)
    post(body("Maybe", start=start))
    look(started)
    post(body("Maybe", "resolved", start=start))
    look(started)
    assert [e.outcome for e in reversed(started.history.entries())] == ["ended", "ended"]
    assert started.requests == []


def test_nobody_answering_is_a_no_and_pages_again(post, started):
    paged = []
    started.page = lambda _event, why: paged.append(why)
    post(body("Maybe"))
    assert look(started)["Maybe"] == "ask"
    started.now = lambda: datetime.now(UTC) + timedelta(minutes=16)
    assert look(started)["Maybe"] == "not approved"
    assert "nobody approved it within 15m" in paged[-1]
    assert started.requests == []


def test_everything_the_gates_said_goes_into_the_runs_first_record(post, started):
    post(body())
    look(started)
    decision = started.requests[0].cause["decision"]
    assert len(decision["gates"]) == 14
    assert decision["outcome"] == "start"
    assert handover.unpack(handover.pack(started.requests[0])).cause["decision"] == decision


def test_a_person_is_paged_about_what_is_stale(post, started):
    paged = []
    started.page = lambda event, why: paged.append((event.subject(), why))

    class Queued(type(post.receiver.endpoints["am"])):
        def read(self, parsed, delivery):
            old = delivery.received_at - timedelta(hours=20)
            return tuple(a.model_copy(update={"observed_at": old}) for a in super().read(parsed, delivery))

    post.receiver.endpoints["am"] = Queued(post.receiver.endpoints["am"].settings)
    post(body())
    assert look(started)["Down"] == "refused"
    assert len(paged) == 1
    assert "20h old" in paged[0][1]


# ---- breaking the glass ----


def asked_for(post, started, **more):
    """An event that waits for a person because nothing says that we are not cut off ourselves."""
    post(body(**more))
    look(started)
    return started.history.entries()[0]


def break_it(started, inbox, entry, people=("J. Doe", "A. Roe"), why="ticket 12"):
    return asyncio.run(glass.broken(started, inbox, entry, people, why))


def test_two_people_pass_what_may_be_passed_and_it_is_kept(post, started, inbox, folder):
    (folder / "triggers.yaml").write_text(TRIGGERS.replace("drill_within: 0s", "drill_within: 0s, switch: /nowhere"))
    started.loaded[:] = [load(folder)]
    entry = asked_for(post, started)
    assert entry.outcome == "refused"
    paged = []
    started.page = lambda _event, why: paged.append(why)
    assert break_it(started, inbox, entry) == "run-1"
    (request,) = started.requests
    assert request.cause["decision"]["break_glass"]["second"] == "A. Roe"
    assert (request.automatic, request.operator) == (False, "J. Doe")
    (kept,) = started.history.notes("break-glass")
    assert (kept["who"], kept["second"], kept["why"], "safety" in kept["gates"]) == (
        "J. Doe",
        "A. Roe",
        "ticket 12",
        True,
    )
    assert "broke the glass" in paged[0]
    with pytest.raises(SafetyRefusal, match="began a run already"):
        break_it(started, inbox, entry)


@pytest.mark.parametrize(
    ("people", "why"),
    [(("J. Doe", "j. doe "), "x"), (("J. Doe", ""), "x"), (("", "A. Roe"), "x"), (("J. Doe", "A. Roe"), " ")],
)
def test_one_person_or_no_reason_is_not_enough(post, started, inbox, people, why):
    entry = asked_for(post, started, name="Maybe")
    with pytest.raises(BadInput, match="two people"):
        break_it(started, inbox, entry, people, why)
    assert started.requests == []


def test_nobody_passes_the_kill_switch_and_the_try_is_kept(post, started, inbox):
    entry = asked_for(post, started, name="Maybe")
    killswitch.pause_file("toy").parent.mkdir(parents=True)
    killswitch.pause_file("toy").write_text("stop")
    with pytest.raises(SafetyRefusal, match="nothing passes this: kill-switch"):
        break_it(started, inbox, entry)
    assert started.requests == []
    assert started.history.notes("break-glass")[0]["refused"]
