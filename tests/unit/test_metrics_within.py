"""The parameters of a check of metrics."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tasks.metrics.actions import Within


def within(**more):
    return Within.model_validate({"metric": "request_latency", "below": "1s", "for": "10s", **more})


def test_a_look_never_reaches_back_to_before_the_check_began():
    """Else its last look would still count what was before: the fast requests of the release from before."""
    with pytest.raises(ValidationError, match=r"over \(30s\) is longer than for \(10s\).*dilute"):
        within(over="30s")
    assert within(over="10s").over == 10.0
    assert within().over is None
