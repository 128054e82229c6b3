"""Reads a YAML file into plain data, remembering where every key and value stands.

ruamel.yaml parses (YAML 1.2); this module adds positions, limits (a file that people write is small) and turns
each failure, of YAML or of a pydantic model, into a Finding with file, line and column.
"""

from __future__ import annotations

import re
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from flows.engine.findings import Finding, InvalidFiles, nearest, shown

MAX_BYTES = 1 << 20
MAX_DEPTH = 40
MAX_NODES = 50_000

_OLDER = re.compile(r"^%YAML(?![ \t]+1\.2[ \t]*(?:#|$)).*", re.MULTILINE)

M = TypeVar("M", bound=BaseModel)
Where = tuple[str | int, ...]


@dataclass
class Document:
    """Plain data and the place of each part: path -> (line, column), from 1. Keys stand at ``(*path, key, "~")``."""

    file: str
    data: Any
    places: dict[Where, tuple[int, int]] = field(default_factory=dict)

    def place(self, where: Where, *, key: bool = False) -> tuple[int, int]:
        """Position of the nearest known part at or above ``where``."""
        if key and (*where, "~") in self.places:
            return self.places[(*where, "~")]
        for end in range(len(where), -1, -1):
            if where[:end] in self.places:
                return self.places[where[:end]]
        return (1, 1)

    def finding(self, code: str, message: str, where: Where = (), **more: Any) -> Finding:
        """An error at ``where``; keywords as in Finding, plus ``key=True`` to point at the key."""
        key = more.pop("key", False)
        line, column = self.place(where, key=key)
        return Finding(
            severity=more.pop("severity", "error"),
            code=code,
            message=message,
            file=self.file,
            line=line,
            column=column,
            where=".".join(str(p) for p in where),
            **more,
        )


def read(path: Path) -> Document:
    """Parse ``path``. Raises InvalidFiles for what cannot be read, is no UTF-8, is no YAML, or is out of bounds."""
    name = str(path)
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise InvalidFiles(
            [Finding(severity="error", code="unreadable", file=name, message=f"cannot read the file: {e.strerror}")]
        ) from e
    return parse(raw, name)


def parse(raw: bytes, name: str) -> Document:
    """As ``read``, from bytes."""
    document = Document(name, None)
    if len(raw) > MAX_BYTES:
        raise InvalidFiles([document.finding("too-large", f"{len(raw)} bytes; at most {MAX_BYTES} are read")])
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise InvalidFiles([document.finding("not-utf-8", f"byte {e.start} is not UTF-8: {e.reason}")]) from e
    old = _OLDER.search(text)
    if old:  # 1.1 reads yes, 1:30 and 010 as something else
        document.places[()] = (text.count("\n", 0, old.start()) + 1, 1)
        raise InvalidFiles([document.finding("yaml", f"{old[0].strip()}: only YAML 1.2 is read; drop this line")])
    yaml = YAML(typ="rt", pure=True)
    yaml.allow_duplicate_keys = False
    yaml.max_depth = MAX_DEPTH + 2  # stops at once; the walker counts again, with aliases
    yaml.composer.warn_double_anchors = False  # YAML 1.2 allows to use a name again; nobody hears a warning
    try:
        loaded = yaml.load(text)
    except MarkedYAMLError as e:
        raise InvalidFiles([_yaml_finding(document, e)]) from e
    # ruamel raises these bare for some malformed scalars (out-of-range dates and escapes, lone anchors, deep nesting)
    except (
        YAMLError,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        IndexError,
        AssertionError,
        RecursionError,
    ) as e:
        message = "nested too deeply" if isinstance(e, RecursionError) else f"not YAML: {str(e) or type(e).__name__}"
        raise InvalidFiles([document.finding("yaml", message)]) from e
    document.places[()] = (1, 1)
    document.data = _Walker(document).plain(loaded, (), 0)
    return document


def _yaml_finding(document: Document, error: MarkedYAMLError) -> Finding:
    mark = error.problem_mark or error.context_mark
    problem = " ".join(str(error.problem or error.context or "not YAML").split())
    code = "duplicate-key" if "duplicate key" in problem else "yaml"
    if problem.startswith("maximum depth"):
        code, problem = "too-large", f"more than {MAX_DEPTH} levels"
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    return Finding(severity="error", code=code, file=document.file, line=line, column=column, message=problem)


class _Walker:
    """Turns ruamel's nodes into plain data, recording positions and counting, so that aliases cannot explode."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.count = 0

    def plain(self, node: Any, where: Where, depth: int) -> Any:
        self.count += 1
        if depth > MAX_DEPTH or self.count > MAX_NODES:
            limit = f"{MAX_DEPTH} levels" if depth > MAX_DEPTH else f"{MAX_NODES} values"
            raise InvalidFiles([self.document.finding("too-large", f"more than {limit} (aliases count)", where)])
        if isinstance(node, CommentedMap | CommentedSeq) and node.tag.value is not None:
            raise InvalidFiles([self.document.finding("yaml", f"the tag {node.tag.value} is not used here", where)])
        if isinstance(node, CommentedMap):
            return self._mapping(node, where, depth)
        if isinstance(node, CommentedSeq):
            items = []
            for i, item in enumerate(node):
                line, column = node.lc.item(i) or (0, 0)
                self.document.places[(*where, i)] = (line + 1, column + 1)
                items.append(self.plain(item, (*where, i), depth + 1))
            return items
        return self._scalar(node, where)

    def _scalar(self, node: Any, where: Where) -> Any:
        if isinstance(node, bool) or node is None:
            return node
        if isinstance(node, int) and abs(node) >= 1 << 63:
            raise InvalidFiles([self.document.finding("bad-value", "a number of more than 64 bits", where)])
        if isinstance(node, str):
            return self._text(node, where)
        for kind in (int, float):  # ruamel's scalars are subclasses that remember their style
            if isinstance(node, kind):
                return kind(node)
        if type(node).__name__ == "ScalarBoolean":
            return bool(node)
        # a date, a set, a tagged node: no key of ours takes one, so the models would only say so less clearly
        raise InvalidFiles(
            [self.document.finding("yaml", f"a {type(node).__name__} is not used here; quote it", where)]
        )

    def _text(self, node: str, where: Where) -> str:
        try:
            node.encode()
        except UnicodeEncodeError as e:  # an escaped half of a surrogate pair: no text, and no terminal shows it
            message = f"character {e.start + 1} is no Unicode character (a lone surrogate)"
            raise InvalidFiles([self.document.finding("yaml", message, where)]) from e
        return str(node)

    def _mapping(self, node: CommentedMap, where: Where, depth: int) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for key, value in node.items():
            if not isinstance(key, str):
                raise InvalidFiles(
                    [self.document.finding("yaml", "keys are text; quote this one", where, value=shown(key))]
                )
            try:
                line, column = node.lc.value(key)
                key_line, key_column = node.lc.key(key)
            except (KeyError, TypeError):  # a key merged in by << has no place of its own
                place = self.document.place(where)
                line, column = key_line, key_column = place[0] - 1, place[1] - 1
            name = self._text(key, where)
            self.document.places[(*where, name)] = (line + 1, column + 1)
            self.document.places[(*where, name, "~")] = (key_line + 1, key_column + 1)
            plain[name] = self.plain(value, (*where, name), depth + 1)
        return plain


def validated(document: Document, model: type[M], data: Any = None, where: Where = ()) -> M:
    """``data`` (default: the whole document) as ``model``. Raises InvalidFiles with a Finding per fault."""
    try:
        return model.model_validate(document.data if data is None else data)
    except ValidationError as e:
        raise InvalidFiles(model_findings(document, e, model, where)) from e


def model_findings(document: Document, error: ValidationError, model: type[BaseModel], where: Where) -> list[Finding]:
    """Each fault of a ValidationError, placed in the document under ``where``."""
    findings = []
    values: dict[tuple[Where, str], list[str]] = {}  # a value that fits no kind of a union is one fault, not one a kind
    for fault in error.errors(include_url=False):
        loc = tuple(p for p in fault["loc"] if not (isinstance(p, str) and p.startswith("function-")))
        at = (*where, *loc)
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            known = _keys(model, loc[:-1])
            findings.append(
                document.finding(
                    "unknown-key",
                    f"unknown key {loc[-1]!r}",
                    at,
                    key=True,
                    expected="one of " + ", ".join(known) if known else "",
                    nearest=nearest(loc[-1], known),
                )
            )
        elif fault["type"] == "missing":
            findings.append(document.finding("missing-key", f"key {loc[-1]!r} is missing", at))
        else:
            real = next((at[:end] for end in range(len(at), 0, -1) if at[:end] in document.places), at)
            value = "" if isinstance(fault["input"], dict | list) or _secret(loc) else shown(fault["input"])
            values.setdefault((real, value), []).append(message)
    for (real, value), messages in values.items():
        findings.append(document.finding("bad-value", ", or ".join(dict.fromkeys(messages)), real, value=value))
    return findings


def _secret(loc: Where) -> bool:
    """A value in a place meant for a secret reference may be the secret itself, pasted by mistake: never shown."""
    return any(w in str(p).lower() for p in loc for w in ("password", "secret", "token", "key"))


def _keys(model: Any, loc: Where) -> list[str]:
    """The keys that the model at ``loc`` inside ``model`` takes; empty when that is no model."""
    current = _strip(model)
    for part in loc:
        origin = get_origin(current)
        if isinstance(current, type) and issubclass(current, BaseModel):
            fields = {f.alias or n: f for n, f in current.model_fields.items()}
            current = _strip(fields[str(part)].annotation) if str(part) in fields else None
        elif origin in (dict, list, tuple):
            current = _strip(get_args(current)[-1 if origin is dict else 0])
        else:
            return []
    if isinstance(current, type) and issubclass(current, BaseModel):
        return sorted(f.alias or n for n, f in current.model_fields.items())
    return []


def _strip(annotation: Any) -> Any:
    """Look through Annotated and Optional."""
    while True:
        origin = get_origin(annotation)
        if origin in (Union, types.UnionType):
            real = [a for a in get_args(annotation) if a is not type(None)]
            if len(real) != 1:
                return annotation
            annotation = real[0]
        elif hasattr(annotation, "__metadata__"):
            annotation = get_args(annotation)[0]
        else:
            return annotation
