"""The system file: the scaling plan's sections as written there, and every fault with its place."""

from __future__ import annotations

import pytest

from flows.engine.findings import InvalidFiles

# The YAML blocks of scaling-plan.md, byte for byte.
SCALING = """\
scaling:
  cpu:
    warning: 70%
    critical: 85%
  memory:
    warning: 75%
    critical: 90%
  latency:
    warning: 500ms
    critical: 1000ms
  errors:
    warning: 1%
    critical: 5%
"""
AUTO_SCALING = """\
auto_scaling:
  min_instances: 2
  max_instances: 10
  target_cpu_utilization: 70%
  cooldown_period: 300
  scale_up:
    adjustment: +2
    cooldown: 300
  scale_down:
    adjustment: -1
    cooldown: 600
"""
DATABASE = """\
database:
  read_replicas:
    min: 1
    max: 3
  connection_pool:
    min: 20
    max: 100
  auto_vacuum:
    enabled: true
    threshold: 50
"""
MONITORING = """\
monitoring:
  metrics:
    - cpu_usage
    - memory_usage
    - request_latency
    - error_rate
    - active_users
  alerts:
    - name: high-cpu
      condition: cpu_usage > 85%
      severity: critical
    - name: high-latency
      condition: request_latency > 1000ms
      severity: warning
"""
DATABASE_MONITORING = """\
database_monitoring:
  metrics:
    - connection_count
    - query_performance
    - replication_lag
    - disk_usage
  alerts:
    - name: high-connections
      condition: connection_count > 90%
      severity: critical
    - name: replication-lag
      condition: lag > 60s
      severity: warning
"""
COST_MONITORING = """\
cost_monitoring:
  metrics:
    - instance_cost
    - storage_cost
    - bandwidth_cost
  alerts:
    - name: cost-increase
      condition: daily_cost > threshold
      severity: warning
"""
SECTIONS = (SCALING, AUTO_SCALING, DATABASE, MONITORING, DATABASE_MONITORING, COST_MONITORING)
SITES = "system: x\nsites: {west: {}, east: {}}\n"


def findings(kit, text):
    with pytest.raises(InvalidFiles) as e:
        kit.system(text)
    return e.value.findings


def test_the_scaling_plan_loads_as_written(kit):
    system = kit.system(SITES + "".join(SECTIONS)).system
    assert system.scaling.latency.critical.value == 1.0
    assert (system.scaling.cpu.warning.value, system.scaling.cpu.warning.unit) == (70.0, "%")
    scaling = system.auto_scaling
    assert (scaling.scale_up.adjustment, scaling.scale_down.adjustment) == (2, -1)
    assert (scaling.cooldown_period, scaling.scale_down.cooldown, scaling.target_cpu_utilization) == (300, 600, 70)
    assert (system.database.read_replicas.max, system.database.connection_pool.min) == (3, 20)
    assert system.database.auto_vacuum.threshold == 50
    assert [a.condition.text for a in system.monitoring.alerts] == ["cpu_usage > 85%", "request_latency > 1000ms"]
    assert system.database_monitoring.alerts[1].condition.threshold.value == 60.0
    assert system.cost_monitoring.alerts[0].condition.threshold.unit == "name"


@pytest.mark.parametrize("section", SECTIONS)
def test_each_section_loads_alone(kit, section):
    kit.system(SITES + section)


def test_components_sites_and_objectives(kit):
    loaded = kit.system()
    assert loaded.settings["storage"].region == "us-east-1"
    assert loaded.system.objectives["data"].rto == 600
    assert loaded.system.objectives["data"].rpo == 0
    assert loaded.system.components["storage"].domain == "storage"


@pytest.mark.parametrize(
    ("old", "new", "code", "line", "column", "near"),
    [
        ("provider: storage.s3", "provider: storage.s4", "unknown-provider", 10, 15, "storage.s3"),
        ("region: us-east-1", "regoin: us-east-1", "unknown-key", 13, 5, "region"),
        ("    access_key: env:A\n", "", "bad-value", 10, 5, ""),
        ('{app: "http://127.0.0.1:1/"}', "7", "bad-value", 19, 11, ""),
        ("      west: {endpoint", "      wets: {endpoint", "unknown-site", 15, 13, "west"),
        ("  east: {}\n", "  east: {}\n  active: {}\n", "reserved-name", 5, 11, ""),
        ("objectives:", "objectvies:", "unknown-key", 5, 1, "objectives"),
        ("rto: 5m", "rto: 5 minutes", "bad-value", 6, 14, ""),
        ("rto: 5m", "rot: 5m", "unknown-key", 6, 9, "rto"),
        ("sites:\n  west: {}\n  east: {}\n", "", "missing-key", 1, 1, ""),
        ("system: toyland", "system: Toy Land", "bad-value", 1, 9, ""),
        ("system: toyland", "system: toyland\nsystem: other", "duplicate-key", 2, 1, ""),
        ("access_key: env:A", "access_key: hunter2hunter2", "bad-value", 11, 17, ""),
    ],
)
def test_faults_have_a_place_and_the_nearest_name(kit, old, new, code, line, column, near):  # noqa: PLR0917 - one row
    assert kit.SYSTEM.count(old) == 1
    found = findings(kit, kit.SYSTEM.replace(old, new))
    first = next((f for f in found if f.code == code), None)
    assert first is not None, found
    assert (first.line, first.column, first.nearest) == (line, column, near), str(first)
    assert "hunter2" not in "".join(str(f) for f in found)


@pytest.mark.parametrize(
    ("section", "old", "new", "line"),
    [
        (SCALING, "warning: 70%", "warning: 95%", 5),  # above critical
        (SCALING, "warning: 500ms", "warning: 5%", 11),  # another unit
        (AUTO_SCALING, "min_instances: 2", "min_instances: 20", 4),
        (AUTO_SCALING, "adjustment: +2", "adjustment: -2", 4),
        (AUTO_SCALING, "target_cpu_utilization: 70%", "target_cpu_utilization: 70", 6),
        (AUTO_SCALING, "cooldown_period: 300", "cooldown_period: true", 7),
        (DATABASE, "max: 3", "max: 0", 5),
        (MONITORING, "cpu_usage > 85%", "cpu_usage over 85%", 12),
        (MONITORING, "severity: critical", "severity: fatal", 13),
    ],
)
def test_sections_that_make_no_sense(kit, section, old, new, line):
    found = findings(kit, SITES + section.replace(old, new))
    assert [(f.code, f.line) for f in found] == [("bad-value", line)], [str(f) for f in found]
