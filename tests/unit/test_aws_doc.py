"""What docs/aws.md shows can be loaded as it stands there, and says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tasks import catalog
from tasks.zones import _route53_settings as route53

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "aws.md").read_text(encoding="utf-8")


def blocks():
    return [YAML(typ="safe").load(b) for b in re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)]


def components():
    found = [(b.get("components") or b).items() for b in blocks() if "steps" not in b]
    return [component for items in found for _, component in items]


@pytest.mark.parametrize("component", components(), ids=lambda c: c["provider"])
def test_every_component_loads(component):
    settings = {k: v for k, v in component.items() if k != "provider"}
    assert catalog.provider(component["provider"]).Settings.model_validate(settings)


def test_every_step_loads():
    steps = [step for block in blocks() for step in block.get("steps", ())]
    assert steps
    for step in steps:
        assert catalog.actions()[step["action"]].model_validate(step["with"])


def test_every_setting_of_route53_is_documented():
    table = TEXT.split("## Route 53:", 1)[1].split("\n## ", 1)[0]
    rows = {k for row in re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE) for k in re.findall(r"`(\w+)`", row)}
    rest = {"profile", "timeout", "private", "dns_timeout"}
    assert set(route53.ZoneSettings.model_fields) - rest <= rows


def test_the_policies_are_where_the_page_says():
    assert (ROOT / "deployments" / "iam" / "zones.route53.json").exists()
