"""``kill -9`` of the receiver under a storm of deliveries: what was answered 2xx is there, once; and on a full disk."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from patience import until
from receiving import RELIGHT, Serve, alert, toy

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
RATE, KILLS, CLIENTS = 200.0, 4, 8


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    one = Serve(tmp_path / "state", toy(tmp_path))
    one.start()
    yield one
    one.stop()


class Storm:
    """Clients that post at a rate. A fifth of the deliveries is sent again, at once or after no answer came."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve
        self.accepted: dict[int, int] = {}
        """number -> how often it was answered 2xx."""
        self.statuses: set[int] = set()
        self.sent = self.unanswered = 0
        self.over = threading.Event()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._dice = random.Random(11)
        self._bodies: dict[int, bytes] = {}

    def client(self) -> None:
        next_at = time.monotonic()
        while not self.over.is_set():
            next_at += CLIENTS / RATE
            self.over.wait(max(0.0, next_at - time.monotonic()))
            with self._lock:
                again = self._bodies and self._dice.random() < 0.2
                number = self._dice.choice(list(self._bodies)[-50:]) if again else next(self._numbers)
                raw = self._bodies.setdefault(number, json.dumps(alert(number)).encode())
                self.sent += 1
            try:
                status, _, _ = self.serve.ask("POST", "/alerts/am", raw)
            except (OSError, http.client.HTTPException):
                with self._lock:
                    self.unanswered += 1
                continue
            with self._lock:
                self.statuses.add(status)
                if 200 <= status < 300:
                    self.accepted[number] = self.accepted.get(number, 0) + 1


def test_what_was_answered_is_there_once_however_often_the_receiver_is_killed(serve: Serve) -> None:
    storm, dice = Storm(serve), random.Random(5)
    began = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(storm.client) for _ in range(CLIENTS)]
        for _ in range(KILLS):
            before = len(storm.accepted)
            until(lambda before=before: len(storm.accepted) > before + 100 + dice.randrange(200), 60)
            serve.kill()
            until(serve.healthy, 60)
        before = len(storm.accepted)
        until(lambda: len(storm.accepted) > before + 100, 60)
        storm.over.set()
        for one in clients:
            one.result()
    took_s = time.monotonic() - began
    sys.stdout.write(
        f"\n{storm.sent} deliveries in {took_s:.1f} s, {storm.unanswered} of them without an answer;"
        f" {len(storm.accepted)} alerts accepted through {KILLS} kills\n"
    )
    assert storm.unanswered, "no kill hit a delivery: the test shows nothing"
    assert storm.statuses <= {200, 202, 503}

    def undecided() -> int:
        with serve.inbox() as db:
            return int(db.execute("SELECT count(*) FROM events WHERE decision IS NULL").fetchone()[0])

    until(lambda: undecided() == 0, 60)
    with serve.inbox() as db:
        rows = db.execute("SELECT json_extract(event, '$.labels.n'), episode FROM events").fetchall()
        kept = [int(n) for n, _ in rows]
        assert set(storm.accepted) <= set(kept), "answered 2xx, and lost"
        assert len(kept) == len(set(kept)), "kept twice"
        (most,) = db.execute("SELECT max(c) FROM (SELECT count(*) c FROM episodes GROUP BY fingerprint)").fetchone()
        assert most == 1
        outcomes = dict(db.execute("SELECT outcome, count(*) FROM events GROUP BY outcome").fetchall())
        doubled = db.execute("SELECT count(*) FROM events GROUP BY episode HAVING count(*) > 1").fetchall()
    assert doubled == [], "more than one decision for an episode"
    assert outcomes == {"shadow": len(kept)}


def test_a_full_disk_is_answered_503_with_retry_after_and_taken_again_once_there_is_room(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=2m none {folder} && echo ready && exec cat"
    holder = subprocess.Popen(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", mount], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"ready\n"
    inside = ("nsenter", "-t", str(holder.pid), "--user", "--mount", "--preserve-credentials")
    serve = Serve(folder, toy(tmp_path), prefix=inside)

    def do(*words: str | Path) -> str:
        return subprocess.run([*inside, *words], capture_output=True, text=True, check=False).stdout

    try:
        serve.start()
        assert serve.post(alert(1))[0] == 202
        do("sh", "-c", f"cat /dev/zero > {folder}/filler")
        big = {**alert(2), "commonAnnotations": {"a": "x" * 200_000}}
        status, headers, said = serve.ask("POST", "/alerts/am", json.dumps(big).encode())
        assert (status, headers.get("retry-after")) == (503, "5"), said
        assert b"cannot be written" in said
        assert serve.ask("GET", "/healthz")[0] == 200
        do("rm", folder / "filler")
        assert serve.post(big)[0] == 202
        env = ["env", f"RELIGHT_STATE={folder}", RELIGHT, "inbox", "list", "--json"]
        kept = json.loads(do(*env))
        assert sorted(e["event"]["labels"]["n"] for e in kept) == ["1", "2"]
    finally:
        serve.stop()
        holder.communicate()
