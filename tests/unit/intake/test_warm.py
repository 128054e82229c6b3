"""Runners that wait: handed one line each, replaced at once, and no trouble of one is another's."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from flows.intake.warm import Warm
from tasks.errors import LeaseHeld, RelightError

RUNNER = """
import json, os, sys
print(json.dumps({"ready": os.getpid()}), flush=True)
line = sys.stdin.readline()
if not line: sys.exit(0)
what = json.loads(line)
if what == "die": os.abort()
if what == "held": print(json.dumps({"error": "another has it", "exit_code": 3}), flush=True)
else: print(json.dumps({"run_id": f"{what} by {os.getpid()}"}), flush=True)
"""


def command(text=RUNNER):
    return [sys.executable, "-c", text]


def run(work):
    return asyncio.run(asyncio.wait_for(work, 30))


async def over(warm):
    await warm.close()
    await asyncio.gather(*warm._begun)


async def waiting(warm, count):
    while len(warm._waiting) < count or not all(one.done() for one in warm._waiting):  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)


def test_two_at_once_get_a_runner_each_and_two_wait_again():
    async def work():
        warm = Warm(command=command(), count=2)
        warm.prepare()
        await waiting(warm, 2)
        ready = {one.result().pid for one in warm._waiting}
        said = await asyncio.gather(warm.hand(json.dumps("one")), warm.hand(json.dumps("two")))
        assert {int(s.rpartition(" ")[2]) for s in said} == ready
        await waiting(warm, 2)
        await over(warm)

    run(work())


def test_a_runner_that_died_while_it_waited_is_replaced_before_it_is_needed():
    async def work():
        warm = Warm(command=command())
        warm.prepare()
        await waiting(warm, 1)
        first = warm._waiting[0].result()
        assert first.stdin is not None
        first.kill()
        await first.wait()
        first.stdin.close()
        assert str(first.pid) not in await warm.hand(json.dumps("one"))
        await over(warm)

    run(work())


def test_what_the_runner_says_against_it_is_raised():
    async def work():
        warm = Warm(command=command())
        with pytest.raises(LeaseHeld, match="another has it"):
            await warm.hand(json.dumps("held"))
        await over(warm)

    run(work())


def test_two_that_die_in_a_row_are_an_error_and_the_next_is_served():
    async def work():
        heard = []
        warm = Warm(heard.append, command())
        with pytest.raises(RelightError, match="two runners in a row"):
            await warm.hand(json.dumps("die"))
        assert len(heard) == 2
        assert "one by" in await warm.hand(json.dumps("one"))
        await over(warm)

    run(work())


def test_one_that_cannot_be_started_at_all_is_said():
    async def work():
        warm = Warm(command=["/nonexistent/python"])
        with pytest.raises(RelightError):
            await warm.hand(json.dumps("one"))
        await over(warm)

    run(work())
