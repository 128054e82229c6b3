"""Which Prefect server is used, without importing Prefect."""

from __future__ import annotations

import fcntl
import os
import socket
import sqlite3

import pytest

from flows.engine import prefectserver
from tasks.errors import BadInput


@pytest.fixture(autouse=True)
def nothing_configured(tmp_path, monkeypatch):
    for name in [n for n in os.environ if n.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "theirs"))
    monkeypatch.setenv("RELIGHT_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs").mkdir()
    return tmp_path


def profiles(folder, text):
    (folder / "theirs" / "profiles.toml").write_text(text)


def test_nothing_is_configured():
    assert prefectserver.configured() == ""
    assert prefectserver.adopt() == ""


def test_the_environment_comes_first(nothing_configured, monkeypatch):
    profiles(nothing_configured, 'active = "one"\n[profiles.one]\nPREFECT_API_URL = "http://one/api"\n')
    monkeypatch.setenv("PREFECT_API_URL", "http://env/api/")
    assert prefectserver.configured() == "http://env/api"


def test_the_active_profile_counts(nothing_configured, monkeypatch):
    text = 'active = "one"\n[profiles.one]\nPREFECT_API_URL = "http://one/api"\n'
    profiles(nothing_configured, text + '[profiles.two]\nPREFECT_API_URL = "http://two/api"\n[profiles.none]\n')
    assert prefectserver.adopt() == "http://one/api"
    assert os.environ.pop("PREFECT_API_URL") == "http://one/api"
    monkeypatch.setenv("PREFECT_PROFILE", "two")
    assert prefectserver.configured() == "http://two/api"
    monkeypatch.setenv("PREFECT_PROFILE", "none")
    assert prefectserver.configured() == ""


@pytest.mark.parametrize(
    "text", ["", "active = 3", "active = 'x'\nprofiles = 1", "no toml [", "[profiles.x]\nactive = 1"]
)
def test_profiles_that_say_nothing_of_use(nothing_configured, text):
    profiles(nothing_configured, text)
    assert prefectserver.configured() == ""


def test_prefect_toml_in_the_working_folder_counts(nothing_configured):
    (nothing_configured / "prefect.toml").write_text('[api]\nurl = "http://toml/api"\n')
    assert prefectserver.configured() == "http://toml/api"


def test_our_own_server_is_believed_only_while_it_holds_its_lock(nothing_configured):
    folder = prefectserver.home()
    folder.mkdir(parents=True)
    prefectserver.note(folder, 4217)
    assert prefectserver.running() == ""
    with (folder / prefectserver.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert prefectserver.running() == "http://127.0.0.1:4217/api"
        assert prefectserver.port_for(None) == 4217  # a second serve of this folder stands by at the same address
        (folder / prefectserver.FILE).write_text("{half a fi")
        assert prefectserver.running() == ""
    assert prefectserver.running() == ""


def test_a_port_that_is_asked_for_and_taken_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"127.0.0.1:{port} is taken"):
            prefectserver.port_for(port)
    assert prefectserver.port_for(port) == port


def test_a_default_port_that_is_taken_is_passed_over(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(prefectserver, "PORT", taken.getsockname()[1])
        assert prefectserver.port_for(None) > taken.getsockname()[1]
        monkeypatch.setattr(prefectserver, "PORTS", 1)
        with pytest.raises(BadInput, match="no free port"):
            prefectserver.port_for(None)


def test_the_database_is_made_once_from_the_shipped_schema(tmp_path):
    prefectserver.prepare(tmp_path)
    with sqlite3.connect(tmp_path / "prefect.db") as made:
        assert made.execute("select count(*) from alembic_version").fetchone() == (1,)
        assert made.execute("select count(*) from flow_run").fetchone() == (0,)
        made.execute("drop table flow_run")
    made.close()
    prefectserver.prepare(tmp_path)  # what is there is left alone
    with sqlite3.connect(tmp_path / "prefect.db") as kept:
        assert kept.execute("select count(*) from sqlite_master where name = 'flow_run'").fetchone() == (0,)
    kept.close()


def test_it_is_bound_to_loopback_and_tells_nobody(tmp_path):
    found = prefectserver.settings(tmp_path, 4201)
    assert found["PREFECT_SERVER_API_HOST"] == "127.0.0.1"
    assert found["PREFECT_SERVER_UI_API_URL"] == "http://127.0.0.1:4201/api"
    assert found["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert found["PREFECT_HOME"] == str(tmp_path)
