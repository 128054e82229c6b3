"""What one cannot see from where the engine stands, and what an earlier run left behind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

BOOKS = Path(__file__).parents[2] / "runbooks" / "lab"


@pytest.fixture
def calm(lab: Any) -> Iterator[Any]:
    lab.fresh()
    yield lab
    lab.heal()


def test_a_primary_that_lives_behind_a_cut_link_is_ended_before_another_is_promoted(calm: Any, tmp_path: Path) -> None:
    """An engine in the standby site sees the other one over the link only, and a cut link refuses in its name."""
    for file in BOOKS.glob("*.yaml"):
        shutil.copy(file, tmp_path)
    system = tmp_path / "system.yaml"
    text = system.read_text()
    for end in ("31", "32"):
        direct, across = f'site: west, address: "127.0.1.{end}:5432"', f'site: west, address: "127.0.2.1{end}:5432"'
        assert direct in text
        text = text.replace(direct, across)
    system.write_text(text)
    calm.fault("network-cut")
    done = calm.relight("run", "failover", "--system", str(system), "--offline", "--json")
    steps = {s["id"]: s for s in done.json["steps"]}
    assert steps["fence"]["outcome"] == "done", "it was taken for fenced because the link refuses"
    assert steps["promote"]["outcome"] == "done"
    assert calm.primary() == "east-pg1"


def test_a_pooler_that_was_left_paused_lets_go_at_the_target_and_when_it_comes_back(calm: Any) -> None:
    for site, book in (("127.0.2.15", "failover"), ("127.0.1.15", "rejoin")):
        _pause(calm, site)
        if book == "failover":
            calm.fault("kill-primary")
        done = calm.run(book)
        assert done.code == 0, done.out + done.err


def _pause(lab: Any, host: str) -> None:
    password = (lab.home() / "secrets" / "relight").read_text().strip()
    where = {"host": host, "port": 6432, "dbname": "pgbouncer", "user": "relight", "password": password}
    with psycopg.connect(**where, autocommit=True, connect_timeout=30) as console:
        psycopg.ClientCursor(console).execute("PAUSE venue")
