"""JSON Schema of the files that users write, for editors: made from the models, never by hand.

``python -m flows.engine.schema`` writes ``runbooks/schema.json`` (runbooks) and ``runbooks/system.schema.json``
(system files) anew. A schema knows one file at a time; what only the system knows (sites, components, order, times) is
``check``'s. Dialect: JSON Schema 2020-12, https://json-schema.org/draft/2020-12.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from flows.engine import places
from flows.engine.runbook import Runbook, StepSpec
from flows.engine.system import Component, System
from tasks import catalog

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
RUNBOOK_FILE = "schema.json"
SYSTEM_FILE = "system.schema.json"

_VARIABLE: Schema = {"type": "string", "pattern": r"\$\{[^}]*\}", "description": "A variable of this runbook."}
_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {8,}.*)*)", re.MULTILINE)


def runbook_schema() -> Schema:
    """The schema of a runbook file: every action by name, with its own parameters under ``with``."""
    schema, shared = _model(Runbook, "")
    step = shared[StepSpec.__name__]
    step["properties"]["action"]["enum"] = list(catalog.actions())
    for name, text in _attributes(StepSpec).items():
        step["properties"][name.removesuffix("_")]["description"] = text
    step["allOf"] = []
    for name, cls in catalog.actions().items():
        parameters, inner = _model(cls, f"{name}.")
        parameters["properties"] = {k: _or_variable(v) for k, v in parameters.get("properties", {}).items()}
        shared |= {**inner, name: parameters}
        then: Schema = {"properties": {"with": {"$ref": f"#/$defs/{name}"}}}
        if parameters.get("required"):
            then["required"] = ["with"]
        step["allOf"].append(_when("action", name, then))
    return {"$schema": DIALECT, "title": "relight runbook", **schema, "$defs": shared}


def system_schema() -> Schema:
    """The schema of a system file: every provider by name, with its own settings beside ``provider``."""
    schema, shared = _model(System, "")
    component = shared[Component.__name__]
    component["properties"]["provider"]["enum"] = list(catalog.provider_names())
    component["allOf"] = []
    for name in catalog.provider_names():
        settings, inner = _model(catalog.provider(name).Settings, f"{name}.")
        settings["properties"] = {"provider": {"const": name}, **settings.get("properties", {})}
        shared |= {**inner, name: settings}
        component["allOf"].append(_when("provider", name, {"$ref": f"#/$defs/{name}"}))
    return {"$schema": DIALECT, "title": "relight system", **schema, "$defs": shared}


def _when(key: str, value: str, then: Schema) -> Schema:
    return {"if": {"properties": {key: {"const": value}}, "required": [key]}, "then": then}


def _model(model: type[BaseModel], prefix: str) -> tuple[Schema, dict[str, Schema]]:
    """A model's schema without its definitions, and those under names that start with ``prefix``."""
    whole: Schema = _clean(model.model_json_schema(by_alias=True), prefix)
    return whole, {prefix + name: inner for name, inner in whole.pop("$defs", {}).items()}


def _clean(node: Any, prefix: str) -> Any:
    """Without pydantic's titles, with references to the prefixed definitions, descriptions on one line a paragraph."""
    if isinstance(node, list):
        return [_clean(v, prefix) for v in node]
    if not isinstance(node, dict):
        return node
    found = {k: _clean(v, prefix) for k, v in node.items() if not (k == "title" and isinstance(v, str))}
    if isinstance(found.get("$ref"), str):
        found["$ref"] = found["$ref"].replace("#/$defs/", f"#/$defs/{prefix}")
    if isinstance(found.get("description"), str):
        text = found["description"].partition("\n\nAttributes:")[0]
        found["description"] = "\n\n".join(" ".join(p.split()) for p in text.split("\n\n"))
    return found


def _or_variable(parameter: Schema) -> Schema:
    """A parameter may be written as ``${name}`` whatever its type; plain text takes that already."""
    if parameter.get("type") == "string" and not {"enum", "pattern", "maxLength"} & parameter.keys():
        return parameter
    about = {k: v for k, v in parameter.items() if k in ("description", "default")}
    return {**about, "anyOf": [{k: v for k, v in parameter.items() if k not in about}, _VARIABLE]}


def _attributes(model: type[BaseModel]) -> dict[str, str]:
    """The ``Attributes:`` section of a docstring: name -> text."""
    section = (model.__doc__ or "").partition("Attributes:\n")[2]
    text = "\n".join(line[4:] for line in section.split("\n"))
    return {name: " ".join(said.split()) for name, said in _ATTRIBUTE.findall(text)}


def texts() -> dict[str, str]:
    """File name below ``runbooks`` -> what it must hold."""
    made = {RUNBOOK_FILE: runbook_schema(), SYSTEM_FILE: system_schema()}
    return {name: json.dumps(schema, indent=2, ensure_ascii=False) + "\n" for name, schema in made.items()}


def described(model: type[BaseModel], prefix: str = "") -> tuple[Schema, dict[str, Schema]]:
    """As ``_model``, with each key's description from the ``Attributes:`` of its class."""
    whole, shared = _model(model, prefix)
    classes = {model.__name__: model, **_nested(model)}
    for name, cls in classes.items():
        found = whole if cls is model else shared.get(prefix + name, {})
        aliases = {n: f.alias or n for n, f in cls.model_fields.items()}
        for attribute, text in _attributes(cls).items():
            if attribute in aliases and aliases[attribute] in found.get("properties", {}):
                found["properties"][aliases[attribute]].setdefault("description", text)
    return whole, shared


def _nested(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    found: dict[str, type[BaseModel]] = {}
    for field in model.model_fields.values():
        for one in (field.annotation, *get_args(field.annotation)):
            if isinstance(one, type) and issubclass(one, BaseModel) and one.__name__ not in found:
                found |= {one.__name__: one, **_nested(one)}
    return found


def write(folder: Path) -> None:
    """Write both files into ``folder``."""
    for name, text in texts().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(places.data("runbooks"))
