"""Who is active: the truth table. Every disagreement that matters stops and asks for a person."""

from __future__ import annotations

import pytest

from flows.engine.roles import Wish, conclude, summary
from tasks.database.protocol import NodeView
from tasks.errors import Contradiction


def db(primary=None, followed=None, nodes=None):
    writers = nodes if nodes is not None else [f"{primary}-pg1"] if primary else []
    sites = sorted({w.partition("-")[0] for w in writers})
    return {"primary_site": primary, "followed_site": followed, "primary_nodes": writers, "primary_sites": sites}


CONTRADICTION = "contradiction"
W, E = "west", "east"


@pytest.mark.parametrize(
    ("databases", "names", "wish", "expected"),
    [
        # all agree
        ([db(W, W)], [W], Wish(), W),
        ([db(E, E)], [E], Wish(), E),
        # the primary is gone: its replicas say whom they followed
        ([db(None, W)], [W], Wish(), W),
        ([db(None, W)], [None], Wish(), W),
        ([db(None, W)], [], Wish(), W),
        # no database answers: the names say it
        ([db()], [W], Wish(), W),
        ([], [E, E], Wish(), E),
        ([db()], [W, None], Wish(), W),
        # nothing answers
        ([db()], [None], Wish(), CONTRADICTION),
        ([], [], Wish(), CONTRADICTION),
        ([db()], [None], Wish(leave=W), W),
        ([db()], [None], Wish(to=E), CONTRADICTION),
        # names against databases: a failover half done
        ([db(E, E)], [W], Wish(), CONTRADICTION),
        ([db(None, W)], [E], Wish(), CONTRADICTION),
        ([db(E, E)], [W], Wish(to=E), E),
        ([db(E, E)], [W], Wish(leave=W), E),
        # names against each other
        ([db()], [W, E], Wish(), CONTRADICTION),
        ([], [E, W], Wish(), CONTRADICTION),
        ([db(W, W)], [W, E], Wish(), CONTRADICTION),
        ([db(W, W)], [W, E], Wish(leave=W), W),
        # databases against each other, whether seen by a primary or only by who follows
        ([db(W), db(E)], [W], Wish(), CONTRADICTION),
        ([db(W), db(None, E)], [W], Wish(), CONTRADICTION),
        ([db(W), db(E)], [W], Wish(leave=W), W),
        ([db(W), db(None, None)], [W], Wish(), W),
        # two nodes claim to be primary
        ([db(None, W, ["west-pg1", "east-pg1"])], [W], Wish(), CONTRADICTION),
        # a person named the site to change: the other one is where the system runs
        ([db(None, None, ["west-pg1", "east-pg1"])], [W], Wish(to=E), W),
        ([db(None, None, ["west-pg1", "east-pg1"])], [W], Wish(to=W), E),
        ([db(None, None, ["west-pg1", "west-pg2"])], [W], Wish(to=W), CONTRADICTION),
        ([db(None, None, ["west-pg1", "east-pg1"])], [W], Wish(leave=W), W),
        # after a failover the other site's replica may still follow its old primary: where the primary is, counts
        ([db(E, W)], [E], Wish(), E),
    ],
)
def test_conclude(databases, names, wish, expected):
    seen = {f"db{i}": d for i, d in enumerate(databases)}
    said = {f"n{i}": n for i, n in enumerate(names)}
    if expected is CONTRADICTION:
        with pytest.raises(Contradiction) as e:
            conclude(seen, said, wish)
        assert e.value.exit_code == 3
        assert "--from" in str(e.value)
    else:
        assert conclude(seen, said, wish) == expected


def view(node, **more):
    site = node.partition("-")[0]
    return NodeView(**{"node": node, "site": site, "reach": "answers", "in_recovery": True, **more})


def test_summary_of_nodes():
    sites = {"west-pg1": W, "west-pg2": W, "east-pg1": E}
    views = [
        view("west-pg1", in_recovery=False, read_only=False),
        view("west-pg2", upstream="west-pg1"),
        view("east-pg1", upstream="west-pg1"),
    ]
    found = summary(views, sites)
    assert (found["primary_nodes"], found["primary_site"], found["followed_site"]) == (["west-pg1"], W, W)
    fenced = summary([view("west-pg1", in_recovery=False, read_only=True), *views[1:]], sites)
    assert (fenced["primary_nodes"], fenced["primary_site"]) == ([], None)
    split = summary([*views[:2], view("east-pg1", in_recovery=False, read_only=False)], sites)
    assert (len(split["primary_nodes"]), split["primary_site"]) == (2, None)
