"""Forward actions of load balancers: what is read out of them, and what a change of weights leaves as it was."""

from __future__ import annotations

import pytest

from tasks.errors import BadInput
from tasks.traffic import _forwarding as forwarding

WEST, EAST, OTHER = (f"arn:aws:elasticloadbalancing:r:1:targetgroup/{n}/abc" for n in ("west", "east", "other"))


def route(*actions):
    return forwarding.route("arn", list(actions), default=True, label="listener 443")


def forward(*groups, **config):
    targets = [{"TargetGroupArn": a, "Weight": w} for a, w in groups]
    return {"Type": "forward", "Order": 2, "ForwardConfig": {"TargetGroups": targets, **config}}


def test_what_does_not_forward_is_no_route():
    assert route({"Type": "redirect", "RedirectConfig": {"StatusCode": "HTTP_301"}}) is None


def test_a_single_group_has_all_the_weight_there_is():
    found = route({"Type": "forward", "TargetGroupArn": WEST})
    assert dict(found.weights) == {WEST: 1}
    assert found.weighing({WEST: 1, EAST: 0}) == [
        {
            "Type": "forward",
            "ForwardConfig": {
                "TargetGroups": [{"TargetGroupArn": WEST, "Weight": 1}, {"TargetGroupArn": EAST, "Weight": 0}]
            },
        }
    ]


def test_stickiness_and_order_and_other_actions_stay():
    sticky = {"Enabled": True, "DurationSeconds": 600}
    oidc = {
        "Type": "authenticate-oidc",
        "Order": 1,
        "AuthenticateOidcConfig": {"Issuer": "https://id", "ClientId": "c", "ClientSecret": "must not be sent"},
    }
    found = route(oidc, forward((WEST, 1), (EAST, 0), TargetGroupStickinessConfig=sticky))
    assert found.sticky_s == 600
    first, second = found.weighing({WEST: 0, EAST: 5})
    assert first["AuthenticateOidcConfig"] == {"Issuer": "https://id", "ClientId": "c", "UseExistingClientSecret": True}
    assert second["Order"] == 2
    assert second["ForwardConfig"]["TargetGroupStickinessConfig"] == sticky
    assert [g["Weight"] for g in second["ForwardConfig"]["TargetGroups"]] == [0, 5]
    assert oidc["AuthenticateOidcConfig"]["ClientSecret"], "what was read was changed in place"


def test_a_route_that_is_shared_with_another_pool_is_refused():
    groups = {WEST: "west", EAST: "east"}
    mine, foreign = route(forward((WEST, 1), (EAST, 0))), route(forward((OTHER, 1)))
    assert forwarding.of_pool([mine, foreign], groups, "pool") == [mine]
    with pytest.raises(BadInput, match="also forwards to other, which the pool does not have"):
        forwarding.of_pool([route(forward((WEST, 1), (OTHER, 1)))], groups, "pool")
    with pytest.raises(BadInput, match="no listener or rule forwards to west, east"):
        forwarding.of_pool([foreign], groups, "pool")
