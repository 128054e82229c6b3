"""The rules of the house that a reader can rely on, read from the code itself."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.engine import places
from tasks import catalog
from tasks.contract import Action

ROOT = places.PARENT
FILES = sorted(p for package in ("flows", "tasks") for p in (ROOT / package).rglob("*.py"))
NAMES = [str(p.relative_to(ROOT)) for p in FILES]
PREFECT = re.compile(r"^(flows/\w+\.py|tasks/step\.py)$")
BORDERS = {"flows/engine/attempt.py", "flows/cli.py", "flows/window.py", "flows/intake/service.py"}
"""The step runner, the command line with its window, and the receiver with its desk: where any error ends."""
VAGUE = {"utils", "util", "common", "core", "helpers", "helper", "manager", "misc"}


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"), name)


def imported(name: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import in a file, wherever it stands; relative ones start with a dot."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def broken(rule, names=NAMES) -> list[str]:
    return [f"{name}:{line}: {what}" for name in names for line, what in imported(name) if rule(name, what)]


def test_there_is_a_house():
    assert len(FILES) > 40


def test_tasks_never_import_flows():
    assert broken(lambda n, m: n.startswith("tasks/") and m.partition(".")[0] == "flows") == []


def test_prefect_is_imported_only_by_the_procedures_and_the_one_task():
    assert broken(lambda n, m: m.partition(".")[0] == "prefect" and not PREFECT.match(n)) == []


def test_the_engine_imports_nothing_that_imports_prefect():
    """Through flows/*.py and tasks/step.py it would come in by the back door."""
    doors = ("tasks.step", *(f"flows.{p.stem}" for p in (ROOT / "flows").glob("*.py") if p.stem != "__init__"))
    engine = [n for n in NAMES if n.startswith(("flows/engine/", "tasks/")) and n != "tasks/step.py"]
    assert broken(lambda _n, m: any(m == d or m.startswith(d + ".") for d in doors), engine) == []


def test_no_relative_imports():
    assert broken(lambda _n, m: m.startswith(".")) == []


def test_no_vague_names():
    assert [n for n in NAMES if VAGUE & {part.removesuffix(".py").strip("_") for part in n.split("/")}] == []


def test_sizes():
    """Modules of at most 400 lines, functions of 70, classes of 12 methods."""
    found = []
    for name in NAMES:
        lines = (ROOT / name).read_text(encoding="utf-8").count("\n")
        if lines > 400:
            found.append(f"{name}: {lines} lines")
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > 70:
                    found.append(f"{name}:{node.lineno}: {node.name} has {length} lines")
            elif isinstance(node, ast.ClassDef):
                methods = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
                public = [m for m in methods if not m.name.startswith("__")]
                # a twin has the methods of its Protocols, and they were counted there
                if len(public) > 12 and not name.endswith("/twin.py"):
                    found.append(f"{name}:{node.lineno}: {node.name} has {len(public)} methods")
    assert found == []


def catches_all(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(k is None or (isinstance(k, ast.Name) and k.id in ("Exception", "BaseException")) for k in kinds)


def test_except_exception_only_at_the_borders():
    found = [
        f"{name}:{node.lineno}"
        for name in NAMES
        for node in ast.walk(tree(name))
        if isinstance(node, ast.ExceptHandler) and catches_all(node) and name not in BORDERS
    ]
    assert found == []


def test_suppress_names_its_errors():
    """``contextlib.suppress(Exception)`` is an ``except Exception`` too."""
    found = [
        f"{name}:{node.lineno}"
        for name in NAMES
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name | ast.Attribute)
        and (node.func.id if isinstance(node.func, ast.Name) else node.func.attr) == "suppress"
        and any(isinstance(a, ast.Name) and a.id in ("Exception", "BaseException") for a in node.args)
        and name not in BORDERS
    ]
    assert found == []


def test_print_only_on_the_command_line():
    found = [
        f"{name}:{node.lineno}"
        for name in NAMES
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert [f for f in found if not f.startswith("flows/cli")] == []


def test_nothing_waits_with_time_sleep():
    """It would stop the event loop, and a fixed wait is no condition."""
    assert broken(lambda _n, m: m == "time.sleep") == []
    found = [
        f"{name}:{node.lineno}"
        for name in NAMES
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Attribute)
        and node.attr == "sleep"
        and isinstance(node.value, ast.Name)
        and node.value.id == "time"
    ]
    assert found == []


@pytest.mark.parametrize("name", sorted(catalog.actions()))
def test_every_action_is_named_and_says_what_it_makes_true(name):
    cls = catalog.actions()[name]
    assert re.fullmatch(r"[a-z]+\.[a-z]+(_[a-z]+)*", name)
    assert name.partition(".")[0] in catalog.domains()
    assert cls.name == name
    assert cls.__doc__
    assert cls.__doc__ != Action.__doc__
    assert cls.observe is not Action.observe, "an action must be able to look"
    assert cls.apply is not Action.apply, "an action must be able to make its state true"
    assert cls.model_config.get("frozen")
    assert cls.model_config.get("extra") == "forbid"
    assert set(cls.after) <= set(catalog.actions()), f"after names no action: {cls.after}"


@pytest.mark.parametrize("name", catalog.provider_names())
def test_every_provider_loads_and_has_strict_settings(name):
    cls = catalog.provider(name)
    assert isinstance(cls, type)
    assert cls.Settings.model_config.get("extra") == "forbid", "an unknown setting must be an error"
    assert hasattr(cls, "aclose")


def test_everything_public_has_a_docstring():
    """Classes and functions of modules. Methods that fulfil a documented contract are documented there."""
    found = [
        f"{name}:{node.lineno}: {node.name}"
        for name in NAMES
        if not Path(name).name.startswith("_")
        for node in tree(name).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    assert found == []
