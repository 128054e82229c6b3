"""Whether a canary is worse: what must be found, what must not, and how often it is wrong."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from tasks.deploy._canary import Judge, _since
from tasks.deploy._compare import compare
from tasks.errors import BadInput
from tasks.metrics._promql import Requests, tallied
from tasks.metrics.protocol import Served

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, float("inf"))
JUDGE = Judge(share=0.2, for_s=15, most_s=60, minimum=200, alpha=0.05, tolerance=1)


def served(seconds, errors=0):
    """What a server that took so long for each request has in its buckets."""
    edges = [-1.0, *BOUNDS]
    counts = tuple(sum(low < s <= high for s in seconds) for low, high in pairwise(edges))
    return Served(len(seconds), errors, BOUNDS, counts)


def times(n, dice, slower=1.0):
    return [slower * dice.lognormvariate(-4.5, 0.6) for _ in range(n)]


def judged(ours, theirs, **more):
    return compare(ours, theirs, JUDGE.last_level, more.get("tolerance", 1)).worse


def test_a_slow_canary_and_one_that_fails_two_percent_are_found():
    dice = random.Random(1)
    fine = served(times(1200, dice))
    assert judged(served(times(300, dice, slower=6)), fine) == ("latency",)
    assert judged(served(times(300, dice), errors=6), fine) == ("errors",)
    assert judged(served(times(300, dice)), fine) == ()


def test_better_is_not_worse():
    dice = random.Random(2)
    assert judged(served(times(300, dice)), served(times(1200, dice, slower=9), errors=60)) == ()


def test_false_alarms_are_rarer_than_alpha_and_a_little_slower_is_no_alarm():
    """200 canaries as good as the others, and 100 that are slower by less than a bucket: a cold process."""
    dice = random.Random(3)
    alarms = 0
    for _ in range(200):
        errors = [sum(dice.random() < 0.03 for _ in range(n)) for n in (200, 800)]
        alarms += bool(judged(served(times(200, dice), errors[0]), served(times(800, dice), errors[1]), tolerance=0))
    assert alarms <= 200 * JUDGE.alpha
    slower = [judged(served(times(200, dice, slower=1.6)), served(times(800, dice))) for _ in range(100)]
    assert not any(slower)
    strict = [judged(served(times(200, dice, slower=1.6)), served(times(800, dice)), tolerance=0) for _ in range(20)]
    assert all(strict), "the tolerance alone lets them pass"


def test_all_looks_together_spend_no_more_than_alpha():
    looks = 1 + (JUDGE.for_s + JUDGE.most_s)
    assert 2 * JUDGE.last_level + 2 * (looks - 1) * JUDGE.early_level <= JUDGE.alpha + 1e-12
    assert JUDGE.early_level < JUDGE.last_level


def test_requests_that_all_take_the_same_say_nothing():
    same = served([0.002] * 300)
    found = compare(same, same, 0.01, 0)
    assert (found.p_latency, found.worse) == (1.0, ())


def test_a_restarted_server_begins_at_zero_and_other_buckets_are_not_compared():
    before, after = served([0.02] * 500), served([0.02] * 40)
    assert after.since(before).requests == 40
    assert served([0.02] * 540).since(before).requests == 40
    odd = Served(3, 0, (1.0, float("inf")), (3, 0))
    with pytest.raises(BadInput, match="latency buckets of b"):
        _since({"a": after, "b": odd}, {}, ["a", "b"])


def test_what_prometheus_says_is_read_by_server():
    def one(app, status, le, value):
        return {"metric": {"app": app, "status": status, "le": le}, "value": [0, value]}

    vector = [
        *(one("a", "201", le, n) for le, n in (("0.1", "7"), ("0.5", "9"), ("+Inf", "10"))),
        *(one("a", "503", le, n) for le, n in (("0.1", "1"), ("0.5", "1"), ("+Inf", "2"))),
    ]
    found = tallied(vector, Requests())["a"]
    assert (found.requests, found.errors, found.counts) == (12, 2, (8, 2, 2))
    assert found.within_s(0.5) == 0.1
    assert found.within_s(0.95) == float("inf")
    assert Requests().expr("site", "west").endswith(',site="west"})')
