"""Plain data out of YAML, with the place of everything, and one kind of error."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict

from flows.engine import yamlfile
from flows.engine.findings import Finding, InvalidFiles, nearest, shown


def parse(text):
    return yamlfile.parse(text.encode() if isinstance(text, str) else text, "f.yaml")


def fault(text):
    with pytest.raises(InvalidFiles) as e:
        parse(text)
    assert e.value.exit_code == 2
    return e.value.findings[0]


def test_places_of_keys_and_values():
    document = parse('a: 1\nb:\n  - x\n  - c: {d: "5", e: [1, 2]}\n')
    assert document.data == {"a": 1, "b": ["x", {"c": {"d": "5", "e": [1, 2]}}]}
    assert document.place(("a",)) == (1, 4)
    assert document.place(("a",), key=True) == (1, 1)
    assert document.place(("b", 0)) == (3, 5)
    assert document.place(("b", 1, "c", "d")) == (4, 12)
    assert document.place(("b", 1, "c", "e", 1)) == (4, 24)
    assert document.place(("b", 1, "c", "nothing", "there")) == document.place(("b", 1, "c"))
    assert document.place(()) == (1, 1)


def test_values_are_plain_types():
    document = parse("a: 0x1F\nb: 1.50\nc: 'x'\nd: |\n  text\ne: true\nf: null\ng: &anchor yes\nh: *anchor\n")
    assert document.data == {"a": 31, "b": 1.5, "c": "x", "d": "text\n", "e": True, "f": None, "g": "yes", "h": "yes"}
    assert {type(v) for v in document.data.values()} == {int, float, str, bool, type(None)}


def test_merge_keys_have_a_place():
    document = parse("base: &b {x: 1}\nuse:\n  <<: *b\n  y: 2\n")
    assert document.data["use"] == {"x": 1, "y": 2}
    assert document.place(("use", "x"))[0] in (2, 3)


@pytest.mark.parametrize(
    ("text", "code", "line", "column"),
    [
        ("a: 1\nb: [1\n", "yaml", 3, 1),
        ("a: 1\n a: 2\n", "yaml", 2, 3),
        ("a: 1\nb: 2\na: 3\n", "duplicate-key", 3, 1),
        ("a:\n  - {x: 1, x: 2}\n", "duplicate-key", 2, 12),
        ("a: 1\n---\nb: 2\n", "yaml", 2, 1),
        ("a: *nowhere\n", "yaml", 1, 4),
        ("a: 2026-01-01\n", "yaml", 1, 4),
        ("1: x\n", "yaml", 1, 1),
        ("a:\n  true: x\n", "yaml", 2, 3),
        ("a: !!python/object x\n", "yaml", 1, 4),
        ("a: !thing {b: 1}\n", "yaml", 1, 4),
        ("? [a, b]\n: x\n", "yaml", 1, 1),
        ("# old\n%YAML 1.1\n---\na: 1e5\n", "yaml", 2, 1),
        ("a: " + "9" * 30 + "\n", "bad-value", 1, 4),
        ("a: 0x" + "f" * 9000 + "\n", "bad-value", 1, 4),
        ('a: "\\ud800"\n', "yaml", 1, 4),
        ('"\\ud800": 1\n', "yaml", 1, 1),
        (b"a: \xff\n", "not-utf-8", 1, 1),
        ("a: \x07\n", "yaml", 1, 1),
        (b"a" * (yamlfile.MAX_BYTES + 1), "too-large", 1, 1),
        ("[" * 5000, "too-large", 1, 43),
    ],
)
def test_faults(text, code, line, column):
    found = fault(text)
    assert (found.code, found.file) == (code, "f.yaml")
    assert (found.line, found.column) == (line, column), str(found)


def test_aliases_cannot_explode():
    """Nine levels of nine aliases are 400 million values in 300 bytes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    assert fault("\n".join(lines)).code == "too-large"


def test_a_name_used_again_and_a_version_that_is_right():
    assert parse("%YAML 1.2\n---\na: &x 1\nb: &x 2\nc: *x\n").data == {"a": 1, "b": 2, "c": 2}


def test_an_alias_of_itself_ends():
    assert parse("a: &a [*a]\n").data == {"a": [None]}


def test_empty_is_no_error_of_yaml():
    assert parse("").data is None
    assert parse("# nothing\n").data is None


def test_unreadable(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InvalidFiles) as e:
            yamlfile.read(path)
        assert e.value.findings[0].code == "unreadable"
        assert "cannot read" in str(e.value)


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    colour: int = 0
    password: int = 0


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    inner: Inner | None = None
    many: dict[str, Inner] = {}
    row: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("text", "code", "line", "column", "hint"),
    [
        ("name: x\nnmae: y\n", "unknown-key", 2, 1, "name"),
        ("name: x\ninner: {color: 1}\n", "unknown-key", 2, 9, "colour"),
        ("name: x\nmany:\n  a: {color: 1}\n", "unknown-key", 3, 7, "colour"),
        ("name: x\nrow:\n  - {color: 1}\n", "unknown-key", 3, 6, "colour"),
        ("inner: {}\n", "missing-key", 1, 1, ""),
        ("name: x\ninner:\n  colour: red\n", "bad-value", 3, 11, ""),
    ],
)
def test_faults_of_a_model_are_placed(text, code, line, column, hint):
    with pytest.raises(InvalidFiles) as e:
        yamlfile.validated(parse(text), Model)
    (found,) = e.value.findings
    assert (found.code, found.line, found.column, found.nearest) == (code, line, column, hint)
    assert str(found).startswith(f"f.yaml:{line}:{column}: error: ")


def test_every_fault_is_found_not_the_first():
    with pytest.raises(InvalidFiles) as e:
        yamlfile.validated(parse("nmae: x\ninner: {color: 1, colour: red}\n"), Model)
    assert len(e.value.findings) == 4


def test_a_value_where_a_secret_belongs_is_never_shown():
    with pytest.raises(InvalidFiles) as e:
        yamlfile.validated(parse("name: x\ninner: {password: hunter2}\n"), Model)
    assert "hunter2" not in str(e.value)


def test_shown_and_nearest():
    assert shown("x" * 200).endswith("...")
    assert len(shown("x" * 200)) == 80
    assert nearest("helth.http", ["health.http", "zones.point"]) == "health.http"
    assert nearest("qqqqq", ["health.http"]) == ""


def test_a_finding_says_it_all():
    found = Finding(
        severity="error",
        code="bad-value",
        message="no",
        file="f",
        line=2,
        column=3,
        where="a.b",
        value="'x'",
        expected="y",
        nearest="z",
    )
    assert str(found) == "f:2:3: error: a.b: no; got 'x'; expected y; did you mean 'z'? [bad-value]"
