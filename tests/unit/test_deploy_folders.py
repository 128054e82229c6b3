"""Releases as folders and links: never half a release, never a link to somewhere else."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from tasks.deploy.folders import PROVIDER
from tasks.errors import BadInput, Rejected


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", str(tmp_path))
    for version in ("1", "2"):
        (tmp_path / "releases" / version).mkdir(parents=True)
        (tmp_path / "releases" / version / "RELEASE").write_text(version + "\n")
    (tmp_path / "current").symlink_to("releases/1")
    return tmp_path


def folders():
    settings = {"releases": "$PLACE/releases", "sites": {"west": "$PLACE/current"}, "timeout": "200ms"}
    return PROVIDER(PROVIDER.Settings.model_validate(settings), SimpleNamespace(component="releases"))


def run(call):
    return asyncio.run(call)


def test_a_folder_that_does_not_say_its_own_name_is_no_release(place):
    (place / "releases" / "3").mkdir()
    (place / "releases" / ".4.part").mkdir()
    (place / "releases" / ".4.part" / "RELEASE").write_text("4")
    assert run(folders().available("west")) == ("1", "2")


def test_the_link_is_switched_and_can_be_switched_again(place):
    for version in ("2", "2", "1"):
        run(folders().switch("west", version))
        assert run(folders().chosen("west")) == version
    assert sorted(p.name for p in place.iterdir()) == ["current", "releases"]


def test_what_a_switch_that_died_left_is_no_hindrance(place):
    (place / ".current.part").symlink_to("releases/1")
    run(folders().switch("west", "2"))
    assert run(folders().chosen("west")) == "2"


def test_a_release_that_is_not_there_is_refused_and_the_link_stays(place):
    with pytest.raises(BadInput, match="no release '9' for west; there are: 1, 2"):
        run(folders().switch("west", "9"))
    assert run(folders().chosen("west")) == "1"


@pytest.mark.parametrize("to", ["releases/9", "elsewhere", None])
def test_a_link_to_anything_else_is_rejected(place, to):
    (place / "elsewhere").mkdir()
    (place / "current").unlink()
    if to is None:
        (place / "current").mkdir()
    else:
        (place / "current").symlink_to(to)
    with pytest.raises(Rejected, match="current of west"):
        run(folders().chosen("west"))


def test_an_unknown_site_is_bad_input(place):
    with pytest.raises(BadInput, match="no site 'north'"):
        run(folders().chosen("north"))


def test_an_instance_that_does_not_answer_is_not_ready(place):
    answer = run(folders().ask("127.0.0.1:9"))
    assert (answer.version, answer.ready) == (None, False)
    assert answer.why
