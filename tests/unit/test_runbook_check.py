"""Everything that can be known before anything runs: each finding with file, line, column and the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.engine import check, validate
from flows.engine.findings import InvalidFiles
from flows.engine.runbook import is_runbook
from tasks.errors import BadInput

GOOD = """\
runbook: book
vars:
  name: a
  wait: 5s
steps:
  - id: fence
    action: toy.fence
    with: {key: f}
  - id: promote
    action: toy.promote
    with: {key: "${name}"}
    irreversible: true
  - id: place
    action: toy.place
    with: {key: p, site: target, pause: "${wait}"}
    restores: app
  - id: bind
    action: toy.bind
    needs: [promote]
    with: {key: b, bucket: storage}
    timeout: 20s
    restores: data
"""


def findings(kit, text, system=None):
    try:
        return check.check(kit.runbook(text), kit.system(system or kit.SYSTEM))[1]
    except InvalidFiles as e:
        return list(e.findings)


def test_a_good_book_has_no_finding(toys):
    assert findings(toys, GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "code", "line", "column", "near"),
    [
        ("toy.bind", "toy.bnid", "unknown-action", 18, 13, "toy.bind"),
        ("bucket: storage", "buckte: storage", "unknown-key", 20, 20, "bucket"),
        ("key: f}", "key: [f]}", "bad-value", 8, 17, ""),
        ('pause: "${wait}"', "pause: soon", "bad-value", 15, 41, ""),
        ('"${name}"', '"${nmae}"', "unknown-variable", 11, 17, "name"),
        ('"${wait}"', '"x ${}"', "unknown-variable", 15, 41, ""),
        ("site: target", "site: tagret", "unknown-site", 15, 26, "target"),
        ("site: target", "site: eeast", "unknown-site", 15, 26, "east"),
        ("bucket: storage", "bucket: storgae", "unknown-component", 20, 28, "storage"),
        ("bucket: storage", "bucket: health", "unknown-component", 20, 28, ""),
        ("needs: [promote]", "needs: [fence, prmote]", "unknown-step", 19, 20, "promote"),
        ("restores: app", "restores: ap", "unknown-objective", 16, 15, "app"),
        ("id: bind", "id: place", "duplicate-id", 17, 9, ""),
        ("id: bind", "id: Bind", "bad-value", 17, 9, ""),
        ("restores: data", "restores: app", "restored-twice", 22, 15, ""),
        ("restores: data", "restors: data", "unknown-key", 22, 5, "restores"),
        ("restores: data", "on_failure: panic", "bad-value", 22, 17, ""),
        ("restores: data", "attempts: 0", "bad-value", 22, 15, ""),
        ("timeout: 20s", "timeout: 20", None, 0, 0, ""),
        ("timeout: 20s", "timeout: 20 s", "bad-value", 21, 14, ""),
        ("timeout: 20s", "timeout: 0s", "timeout-too-short", 21, 14, ""),
        ("timeout: 20s", "timeout: 1" + "0" * 18 + "0", "bad-value", 21, 14, ""),
        ("    irreversible: true\n", "", "irreversible", 9, 5, ""),
        ("    timeout: 20s", "    irreversible: true", "irreversible", 17, 5, ""),
        ("    timeout: 20s", "    on_failure: undo", None, 0, 0, ""),
        ("irreversible: true", "irreversible: true\n    on_failure: {forced: stop, graceful: undo}", None, 0, 0, ""),
        ("irreversible: true", "irreversible: true\n    on_failure: {forced: panic}", "bad-value", 13, 17, ""),
        ("toy.fence", "toy.make", "unsafe-order", 10, 13, ""),
        ("  name: a", "  name: a\n  name: b", "duplicate-key", 4, 3, ""),
        ("steps:", "stesp:", "unknown-key", 5, 1, "steps"),
        ("id: fence", "id: fence\n    needs: [bind]", "cycle", 7, 12, ""),
        ("id: fence", "id: fence\n    needs: [fence]", "cycle", 7, 12, ""),
    ],
)
def test_findings(toys, old, new, code, line, column, near):  # noqa: PLR0917 - one row of the table
    assert GOOD.count(old) == 1
    found = findings(toys, GOOD.replace(old, new))
    if code is None:
        assert found == []
        return
    first = next((f for f in found if f.code == code), None)
    assert first is not None, [str(f) for f in found]
    assert (first.file, first.line, first.column) == ("book.yaml", line, column), str(first)
    assert first.nearest == near
    assert first.severity == "error"


def test_one_fault_is_one_finding(toys):
    """A value that fits no kind of a variable is said once, not once a kind."""
    found = findings(toys, GOOD.replace("  name: a", "  name: [a]"))
    assert [(f.code, f.line, f.column) for f in found] == [("bad-value", 3, 9)]


def test_all_findings_of_all_steps_at_once(toys):
    text = GOOD.replace("toy.fence", "toy.fnece").replace("site: target", "site: x").replace("bucket: storage", "b: 1")
    assert {f.code for f in findings(toys, text)} == {"unknown-action", "unknown-site", "unknown-key"}


def test_a_timeout_that_the_action_cannot_honour(toys):
    text = "runbook: b\nsteps:\n  - id: a\n    action: toy.make\n    with: {bigger: 40}\n    timeout: 30s\n"
    (found,) = findings(toys, text)
    assert (found.code, found.line, found.column, found.expected) == ("timeout-too-short", 6, 14, "at least 40s")
    assert findings(toys, text.replace("30s", "40s")) == []


def test_unsafe_order_in_a_parallel_branch(toys):
    """Fence is in the book and above, but not on the path to promote."""
    found = findings(toys, GOOD.replace("    irreversible: true\n", "    irreversible: true\n    needs: []\n"))
    assert [(f.code, f.line) for f in found] == [("unsafe-order", 10)]
    assert "must come after toy.fence" in found[0].message


MODES = """\
runbook: book
steps:
  - {id: a, action: toy.make}
  - {id: g, action: toy.make, when: graceful}
  - {id: f, action: toy.make, when: forced}
  - {id: b, action: toy.make}
  - {id: c, action: toy.make, needs: [g]}
  - {id: d, action: toy.make, needs: [g, f]}
"""


def needs(kit, text, mode):
    built, _ = check.plan(kit.runbook(text), kit.system(), mode)
    return {s.id: s.needs for s in built.steps}


def test_modes_bridge_what_they_leave_out(toys):
    """A default need is the step above in that mode; an explicit need that the mode leaves out passes on its own."""
    graceful = {"a": (), "g": ("a",), "b": ("g",), "c": ("g",), "d": ("g",)}
    forced = {"a": (), "f": ("a",), "b": ("f",), "c": ("a",), "d": ("a", "f")}
    assert needs(toys, MODES, "graceful") == graceful
    assert needs(toys, MODES, "forced") == forced


def test_unsafe_only_in_the_mode_that_leaves_the_fence_out(toys):
    text = GOOD.replace("    with: {key: f}\n", "    with: {key: f}\n    when: graceful\n")
    (found,) = findings(toys, text)
    assert (found.code, found.line, found.column) == ("unsafe-order", 11, 13)
    assert "must come after toy.fence on the path of a forced run" in found.message


def test_a_step_that_nothing_can_reach(toys):
    text = MODES + "  - {id: e, action: toy.make, when: forced, needs: [a, g]}\n"
    (found,) = findings(toys, text)
    assert (found.code, found.line, found.column, found.severity) == ("unreachable-step", 9, 56, "error")


def test_a_cycle_through_steps_of_one_mode(toys):
    text = MODES + "  - {id: x, action: toy.make, when: graceful, needs: [y]}\n"
    text += "  - {id: y, action: toy.make, when: graceful, needs: [x]}\n  - {id: z, action: toy.make, needs: [x]}\n"
    assert [f.code for f in findings(toys, text)] == ["cycle"]


def test_a_mode_without_steps(toys):
    text = "runbook: b\nsteps:\n  - {id: a, action: toy.make, when: graceful}\n"
    with pytest.raises(InvalidFiles, match="it is graceful only"):
        check.plan(toys.runbook(text), toys.system(), "forced")


def test_continue_to_nothing_is_a_warning(toys):
    text = "runbook: b\nsteps:\n  - {id: a, action: toy.make, on_failure: continue}\n  - {id: b, action: toy.make}\n"
    (found,) = findings(toys, text)
    assert (found.code, found.severity, found.line, found.column) == ("continue-to-nothing", "warning", 3, 43)
    assert findings(toys, text + "  - {id: c, action: toy.make, needs: []}\n") == []


def test_nothing_to_undo(toys):
    text = "runbook: b\nsteps:\n  - {id: a, action: toy.once, on_failure: undo}\n"
    (found,) = findings(toys, text)
    assert (found.code, found.line, found.column) == ("nothing-to-undo", 3, 43)


def test_objective_at_risk_names_the_critical_path(toys):
    text = GOOD.replace("timeout: 20s", "timeout: 9m\n    attempts: 2")
    (found,) = findings(toys, text)
    assert (found.code, found.severity, found.line, found.column) == ("objective-at-risk", "warning", 23, 15)
    assert "data may take 19m" in found.message
    assert "fence 33.5s, promote 33.5s, bind 18m4s" in found.message


def test_steps_are_moved_behind_what_they_need(toys):
    text = "runbook: b\nsteps:\n  - {id: a, action: toy.make, needs: [c]}\n  - {id: b, action: toy.make, needs: []}\n"
    text += "  - {id: c, action: toy.make, needs: [b]}\n"
    built, _ = check.plan(toys.runbook(text), toys.system(), "forced")
    assert [s.id for s in built.steps] == ["b", "c", "a"]


def test_variables_keep_their_type(toys):
    text = "runbook: b\nvars: {n: 3, s: x}\nsteps:\n"
    text += "  - {id: a, action: toy.make, with: {bigger: '${n}', key: 'is ${s}${n}'}}\n"
    built, _ = check.plan(toys.runbook(text), toys.system(), "forced")
    assert (built.steps[0].action.bigger, built.steps[0].action.key) == (3, "is x3")


def test_the_plan_has_a_digest_of_what_would_run(toys):
    one, _ = check.plan(toys.runbook(GOOD), toys.system(), "forced")
    same, _ = check.plan(toys.runbook(GOOD + "# a comment\n"), toys.system(), "forced")
    other, _ = check.plan(toys.runbook(GOOD.replace("key: f", "key: g")), toys.system(), "forced")
    assert one.digest == same.digest != other.digest


# ---- a folder of files ----


def test_validate_collects_from_every_file(toys, tmp_path: Path):
    (tmp_path / "system.yaml").write_text(toys.SYSTEM)
    (tmp_path / "one.yaml").write_text(GOOD.replace("toy.fence", "toy.fnece"))
    (tmp_path / "two.yaml").write_text("runbook: [\n")
    (tmp_path / "good.yml").write_text(GOOD)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "book.yaml").write_text(GOOD)
    found, files = validate.validate_paths([tmp_path, tmp_path / "one.yaml"])
    assert len(files) == 5
    by_file = {(Path(f.file).name, f.code) for f in found}
    assert by_file == {("one.yaml", "unknown-action"), ("two.yaml", "yaml"), ("book.yaml", "no-system")}


def test_validate_says_a_fault_of_the_system_once(toys, tmp_path: Path):
    (tmp_path / "system.yaml").write_text(toys.SYSTEM.replace("storage.s3", "storage.s4"))
    for name in ("one.yaml", "two.yaml"):
        (tmp_path / name).write_text(GOOD)
    found, _ = validate.validate_paths([tmp_path])
    assert [f.code for f in found] == ["unknown-provider"]


def test_a_fault_of_the_system_hides_no_fault_of_a_runbook_beside_it(toys, tmp_path: Path):
    (tmp_path / "system.yaml").write_text("system: toy\nsites: 3\n")
    (tmp_path / "book.yaml").write_text(GOOD.replace("toy.bind", "toy.bnid").replace("[promote]", "[promtoe]"))
    found, _ = validate.validate_paths([tmp_path])
    books = [f.code for f in found if f.file.endswith("book.yaml")]
    assert (len(found) > len(books), books) == (True, ["unknown-action", "unknown-step"])


def test_validate_nothing(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(BadInput):
            validate.validate_paths([path])


def test_what_is_a_runbook(toys):
    assert is_runbook(toys.runbook(GOOD).document)
    assert not is_runbook(toys.system().document)
