"""The runbook file: ordered steps, each one use of an action with its policy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from flows.engine import yamlfile
from flows.engine.findings import Finding, InvalidFiles, nearest
from flows.engine.system import Name
from flows.engine.thresholds import Strict
from flows.engine.yamlfile import Document
from tasks.contract import Mode
from tasks.errors import BadInput
from tasks.quantities import Duration

OnFailure = Literal["stop", "continue", "undo", "ask"]
Scalar = str | int | float | bool

_VARIABLE = re.compile(r"\$\{([^}]*)\}")


class OnFailureByMode(Strict):
    """What to do after a failed step, where that depends on the mode."""

    forced: OnFailure = "stop"
    graceful: OnFailure = "stop"


class StepSpec(Strict):
    """One step as written.

    Attributes:
        with_: parameters of the action (key ``with``).
        timeout: seconds that one attempt may take, observe, apply and confirm together.
        attempts: how often it is tried in all.
        backoff: seconds before the second attempt; doubles, with jitter, up to 30 s.
        on_failure: one word, or one a mode (``{forced: stop, graceful: undo}``):
            ``stop`` the run; ``continue`` with what does not need this step; ``undo`` what was done;
            ``ask`` a person.
        irreversible: the point of no return: after it, nothing before it is undone.
        restores: the component whose RTO clock stops when this step is confirmed.
        needs: steps that must have ended well; None is "the step above"; an empty list is "nothing".
        when: only in runs of this mode.
    """

    id: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
    action: str
    summary: str = ""
    with_: dict[str, Any] = Field(default_factory=dict, alias="with")
    timeout: Duration = 30.0
    attempts: int = Field(default=1, ge=1, le=20)
    backoff: Duration = 0.2
    on_failure: OnFailure | OnFailureByMode = "stop"
    irreversible: bool = False
    restores: str | None = None
    needs: tuple[str, ...] | None = None
    when: Literal["forced", "graceful"] | None = None

    def on_failure_in(self, mode: Mode) -> OnFailure:
        """The policy in ``mode``."""
        return self.on_failure if isinstance(self.on_failure, str) else getattr(self.on_failure, mode)


class Runbook(Strict):
    """A runbook file, whole. ``vars`` are used as ``${name}`` inside ``with``."""

    runbook: Name
    summary: str = ""
    vars: dict[str, Scalar] = Field(default_factory=dict)
    steps: tuple[StepSpec, ...] = Field(min_length=1)


@dataclass(frozen=True)
class LoadedRunbook:
    """A runbook whose keys and shapes are right, with the document it came from."""

    runbook: Runbook
    document: Document


def load(path: Path) -> LoadedRunbook:
    """Read a runbook file. Raises InvalidFiles. References are checked by ``check.check``, against a system."""
    return from_document(yamlfile.read(path))


def from_document(document: Document) -> LoadedRunbook:
    """As ``load``, from a parsed document."""
    return LoadedRunbook(yamlfile.validated(document, Runbook), document)


def with_vars(loaded: LoadedRunbook, asked: Mapping[str, str]) -> LoadedRunbook:
    """The runbook with other values of some of its ``vars``; each text is read as the type that its own value has.

    Raises BadInput for a name that the runbook does not have, or a text that is none of that type.
    """
    if not asked:
        return loaded
    book = loaded.runbook
    known = ", ".join(f"{n} ({type(v).__name__}, {v})" for n, v in book.vars.items())
    known = f"runbook {book.runbook} has {known or 'no vars'}"
    changed: dict[str, Scalar] = {}
    for name, text in asked.items():
        if name not in book.vars:
            close = nearest(name, book.vars)
            raise BadInput(f"no variable {name!r}: {known}" + (f". Did you mean {close!r}?" if close else ""))
        kind = type(book.vars[name])
        try:
            changed[name] = _TRUTH[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            raise BadInput(f"variable {name}: expected {_KINDS[kind]}, got {text!r}; {known}") from None
    return replace(loaded, runbook=book.model_copy(update={"vars": {**book.vars, **changed}}))


_TRUTH = {"true": True, "false": False}
_KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def is_runbook(document: Document) -> bool:
    """Does this file mean to be a runbook (and not a system file)?"""
    return isinstance(document.data, dict) and "runbook" in document.data


def substituted(document: Document, value: Any, variables: Mapping[str, Scalar], where: yamlfile.Where) -> Any:
    """``value`` with each ``${name}`` replaced. A text that is one variable only keeps the variable's type.

    Raises InvalidFiles for a name that ``vars`` does not have.
    """
    if isinstance(value, dict):
        return {k: substituted(document, v, variables, (*where, k)) for k, v in value.items()}
    if isinstance(value, list):
        return [substituted(document, v, variables, (*where, i)) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value
    unknown = [n for n in _VARIABLE.findall(value) if n not in variables]
    if unknown:
        raise InvalidFiles([_unknown_variable(document, n, variables, where) for n in unknown])
    whole = _VARIABLE.fullmatch(value)
    if whole:
        return variables[whole[1]]
    return _VARIABLE.sub(lambda m: str(variables[m[1]]), value)


def _unknown_variable(document: Document, name: str, variables: Mapping[str, Scalar], where: yamlfile.Where) -> Finding:
    return document.finding(
        "unknown-variable",
        f"unknown variable {name!r}",
        where,
        expected="one of " + ", ".join(variables) if variables else "no variable: this runbook has no vars",
        nearest=nearest(name, variables),
    )
