"""Files for many machines: valid by their schema, nothing published but on loopback, no secret in them, all agree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2] / "deployments"
COMPOSE = ROOT / "compose"


def load(path: Path) -> Any:
    return YAML(typ="safe").load(path)


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return load(COMPOSE / "compose.yaml")["services"]


def test_the_compose_file_is_valid_by_the_schema_of_compose_files():
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, COMPOSE / "compose.yaml"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_two_of_everything_that_may_be_lost(services):
    commands = [" ".join(s.get("command", [])) for s in services.values()]
    assert commands.count("prefect server start --no-services") == 2
    assert commands.count("prefect server services start") == 2
    assert sum(c.startswith("prefect worker start --pool recovery") for c in commands) == 2
    assert sum(c.startswith("relight serve") for c in commands) == 2
    state = [v.split(":")[0] for name in ("west", "east") for v in services[name]["volumes"] if "/var/lib/relight" in v]
    assert state == ["west", "east"]


def test_nothing_is_published_but_on_loopback(services):
    assert [p for s in services.values() for p in s.get("ports", [])] == ["127.0.0.1:4200:4200"]
    assert not [name for name, s in services.items() if s.get("network_mode") or s.get("privileged")]


def test_secrets_are_files_and_in_no_environment(services):
    document = load(COMPOSE / "compose.yaml")
    assert all(set(s) == {"file"} for s in document["secrets"].values())
    used = {name for s in services.values() for name in s.get("secrets", [])}
    assert used == set(document["secrets"])
    for name, service in services.items():
        for key, value in service.get("environment", {}).items():
            secret = any(word in key for word in ("PASSWORD", "AUTH", "CONNECTION_URL", "REDIS"))
            assert not secret or str(value).startswith("/run/secrets/"), f"{name}: {key}"


def test_only_one_migrates_and_every_server_waits_for_it(services):
    every = {n: s for n, s in services.items() if "PREFECT_SERVER_EVENTS_MESSAGING_BROKER" in s.get("environment", {})}
    assert set(every) == {"migrate", "api-1", "api-2", "services-1", "services-2"}
    assert {s["environment"]["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"] for s in every.values()} == {"false"}
    assert services["api-1"]["depends_on"] == services["api-2"]["depends_on"]
    assert services["api-1"]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


@pytest.mark.parametrize("site", ["west", "east"])
def test_the_values_of_a_site_are_one_machine_in_its_zone(site):
    worker = load(ROOT / "helm" / f"worker-{site}.yaml")["worker"]
    assert (worker["config"]["workPool"], worker["config"]["type"], worker["config"]["name"]) == (
        "recovery",
        "process",
        site,
    )
    assert worker["replicaCount"] == 1
    (serve,) = worker["extraContainers"]
    assert serve["volumeMounts"] == worker["extraVolumeMounts"]
    claims = [v["persistentVolumeClaim"]["claimName"] for v in worker["extraVolumes"] if "persistentVolumeClaim" in v]
    made = [c["metadata"]["name"] for c in YAML(typ="safe").load_all(ROOT / "helm" / "claims.yaml")]
    assert set(claims) <= set(made)
    (term,) = worker["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"][0]["values"] == [f"zone-{site}"]


def test_the_values_of_the_server_have_the_settings_of_the_compose_file(services):
    values = load(ROOT / "helm" / "server.yaml")
    assert values["server"]["replicaCount"] == 2
    assert values["backgroundServices"]["runAsSeparateDeployment"] is True
    assert values["postgresql"]["enabled"] is values["redis"]["enabled"] is values["secret"]["create"] is False
    compose = services["api-1"]["environment"]
    for part in ("server", "backgroundServices"):
        named = {e["name"]: e.get("value") for e in values[part]["env"]}
        assert named["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] == compose["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"]
        assert {"PREFECT_REDIS_MESSAGING_URL", "PREFECT_SERVER_DOCKET_URL"} <= set(named)
    messaging = values["backgroundServices"]["messaging"]
    assert messaging["broker"] == messaging["cache"] == compose["PREFECT_SERVER_EVENTS_MESSAGING_BROKER"]
