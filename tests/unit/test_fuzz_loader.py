"""Whatever stands in a file, the loader ends with plain findings: no other exception ever comes out of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from flows.engine import check, runbook, system, yamlfile
from flows.engine.findings import InvalidFiles

LAB = Path(__file__).parents[2] / "runbooks" / "lab"
FILES = {p.name: p.read_bytes() for p in sorted(LAB.glob("*.yaml")) if p.name != "triggers.yaml"}
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
MANY = settings(FEW, max_examples=300)


def load(kit, raw: bytes) -> str:
    """Through the whole loader, as both kinds of file. What came of it, so that a test can see that it says both."""
    came = "good"
    for read in (
        system.check,
        lambda d: check.check(runbook.from_document(d), kit.system()),
    ):
        try:
            read(yamlfile.parse(raw, "fuzz.yaml"))
        except InvalidFiles as e:
            _placed(e)
            came = "faults"
    return came


def _placed(error: InvalidFiles) -> None:
    assert error.findings
    for finding in error.findings:
        assert finding.line >= 1
        assert finding.column >= 1
        str(finding).encode()


@MANY
@given(raw=st.binary(max_size=300))
def test_any_bytes(kit, raw):
    load(kit, raw)


YAMLISH = st.sampled_from(
    [
        "a: ",
        "- ",
        "? ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        ": ",
        "\n",
        "\n  ",
        "&x ",
        "*x",
        "!!int ",
        "!!binary ",
        "!t ",
        "<<: ",
        "|\n",
        ">-\n",
        '"',
        "'",
        "\\ud800",
        "\\x00",
        "#",
        "%YAML 1.1\n---\n",
        "%TAG ! x\n",
        "--- ",
        "...\n",
        "0x1f",
        "1e999",
        ".nan",
        ".inf",
        "1_0",
        "0o7",
        "2026-01-01",
        "2026-13-41T99:99:99Z",
        "12:30:45",
        "~",
        "null",
        "yes",
        "system: x",
        "steps:",
        "runbook: y",
        "\t",
        "\u2028",
        "\ufeff",
        "=",
        "@",
        "`",
    ]
)


@MANY
@given(parts=st.lists(YAMLISH, max_size=14))
def test_anything_that_looks_like_yaml(kit, parts):
    load(kit, "".join(parts).encode())


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["5m", "70%", "+2", "a > 5%", "env:X", "storage.s3", "west", "9" * 400 + "s"]),
)
KEYS = st.one_of(
    st.sampled_from(
        [
            "system",
            "sites",
            "objectives",
            "components",
            "provider",
            "site",
            "from",
            "runbook",
            "vars",
            "steps",
            "id",
            "action",
            "with",
            "timeout",
            "attempts",
            "backoff",
            "needs",
            "when",
            "restores",
            "on_failure",
            "west",
            "rto",
            "scaling",
            "monitoring",
            "alerts",
            "condition",
            "auto_scaling",
            "model_config",
            "model_extra",
            "settings",
            "__class__",
            "~",
            "<<",
        ]
    ),
    st.text(max_size=5),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=25,
)


@MANY
@given(tree=TREES, named=st.booleans())
def test_any_data(kit, tree, named):
    """Data, not text: straight into the models, in both shapes."""
    if named and isinstance(tree, dict):
        tree = {"system": "x", "sites": {"west": {}}, **tree}
    for read in (system.check, lambda d: check.check(runbook.from_document(d), kit.system())):
        try:
            read(yamlfile.Document("fuzz.yaml", tree))
        except InvalidFiles as e:
            str(e)


def _set(tree, path, value):
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = value


def _paths(tree, here=()):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*here, key)
        yield from _paths(value, (*here, key))


@FEW
@given(data=st.data())
def test_lines_and_bytes_of_the_real_files_mixed_up(kit, data):
    """Mutations of what people really write: lines dropped, doubled, moved, indented; bytes changed."""
    lines = FILES[data.draw(st.sampled_from(sorted(FILES)))].split(b"\n")
    for _ in range(data.draw(st.integers(1, 3))):
        i = data.draw(st.integers(0, len(lines) - 1))
        change = data.draw(st.sampled_from(["drop", "double", "swap", "indent", "byte", "cut"]))
        j = data.draw(st.integers(0, len(lines) - 1))
        if change == "drop" and len(lines) > 1:
            del lines[i]
        elif change == "double":
            lines.insert(j, lines[i])
        elif change == "swap":
            lines[i], lines[j] = lines[j], lines[i]
        elif change == "indent":
            lines[i] = b"  " + lines[i]
        elif change == "cut":
            lines = lines[: i + 1]
        elif lines[i]:
            at = data.draw(st.integers(0, len(lines[i]) - 1))
            lines[i] = lines[i][:at] + data.draw(st.binary(max_size=2)) + lines[i][at + 1 :]
    load(kit, b"\n".join(lines))


@FEW
@given(data=st.data())
def test_one_value_of_the_real_files_replaced(kit, data):
    """Any value of the real files by any other: every model and every provider's settings see every wrong type."""
    raw = FILES[data.draw(st.sampled_from(sorted(FILES)))]
    tree = YAML(typ="safe", pure=True).load(raw)
    path = data.draw(st.sampled_from(sorted(_paths(tree), key=str)))
    _set(tree, path, data.draw(TREES))
    for read in (system.check, lambda d: check.check(runbook.from_document(d), kit.system())):
        try:
            read(yamlfile.Document("fuzz.yaml", tree))
        except InvalidFiles as e:
            str(e)


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_real_files_themselves(kit, name):
    """So that the mutations start from something that gets far."""
    assert load(kit, FILES[name]) == "faults"  # no file is both kinds
    document = yamlfile.parse(FILES[name], name)
    if name != "system.yaml":
        runbook.from_document(document)
