"""JSON Schema of ``triggers.yaml``, for editors: made from the models and the sources, never by hand.

``python -m flows.intake.schema`` writes ``runbooks/triggers.schema.json`` anew.
"""

from __future__ import annotations

import json
from pathlib import Path

from flows.engine import places, schema
from flows.engine.schema import DIALECT, Schema
from flows.intake import source
from flows.intake.rules import Triggers

FILE = "triggers.schema.json"


def triggers_schema() -> Schema:
    """The schema of a triggers file: every source by name, with its own settings beside ``source``."""
    whole, shared = schema.described(Triggers)
    known = source.known()
    one: Schema = {
        "type": "object",
        "required": ["source"],
        "properties": {"source": {"enum": sorted(known)}},
        "allOf": [],
    }
    for name, cls in sorted(known.items()):
        settings, inner = schema.described(cls.Settings, f"{name}.")
        settings["properties"] = {**settings["properties"], "source": {"const": name}}
        shared |= {**inner, f"{name}.settings": settings}
        then = {"$ref": f"#/$defs/{name}.settings"}
        one["allOf"].append({"if": {"properties": {"source": {"const": name}}, "required": ["source"]}, "then": then})
    whole["properties"]["sources"] = {
        "type": "object",
        "description": "Endpoints, by the name in their path: /alerts/NAME.",
        "additionalProperties": one,
    }
    return {"$schema": DIALECT, "title": "relight triggers", **whole, "$defs": shared}


def text() -> str:
    """What the file must hold."""
    return json.dumps(triggers_schema(), indent=2, ensure_ascii=False) + "\n"


def write(folder: Path) -> None:
    """Write it into ``folder``."""
    (folder / FILE).write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    write(places.data("runbooks"))
