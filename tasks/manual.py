"""What a person types when the engine itself is gone: the commands of each action, with resolved addresses.

A domain's commands are the functions of ``MANUAL`` (action name -> function) in its module ``manual``. They come from
providers that can say them (``ByHand`` Protocols beside the provider's own); never a secret, only where it is kept.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from tasks.contract import Context
from tasks.variables import expand


@dataclass(frozen=True)
class Command:
    """One command line for bash, and what it prints where all is well: for people, exact where it can be.

    ``why``: what it is for, or what to look at before the next one.
    """

    run: str
    expected: str
    why: str = ""


@dataclass(frozen=True)
class NoManual:
    """There is no command: what to do instead."""

    instead: str


Manual = Callable[[Any, Context], Coroutine[Any, Any, list[Command | NoManual]]]
"""(action, context) -> its commands in order. Only reads. May raise a RelightError: then that is said instead."""


def secret(reference: str) -> str:
    """A shell word (to stand in double quotes) that is the secret behind ``reference`` when it runs."""
    scheme, _, name = reference.partition(":")
    if scheme == "file":
        return f"$(cat {shlex.quote(expand(name))})"
    if scheme == "env":
        return f"${{{name}:?set it first}}"
    if scheme == "aws-secret":
        return _aws_secret(name)
    return f"${{SECRET:?the value of {reference}, from its keeper}}"


def _aws_secret(text: str) -> str:
    """From the first region that has it; one value of it where the reference names a key."""
    address = importlib.import_module("tasks.aws_secrets").parse(text)  # boto3 only where it is used
    asked = ["get-secret-value", "--secret-id", address.name, "--query", "SecretString", "--output", "text"]
    regions = [["--region", r] if r else [] for r in address.regions]
    known = " || ".join(shlex.join(["aws", *region, "secretsmanager", *asked]) for region in regions)
    if not address.key:
        return f"$({known})"
    picked = shlex.join(["python3", "-c", f"import json, sys; print(json.load(sys.stdin)[{address.key!r}])"])
    return f"$({{ {known}; }} | {picked})"


def again(line: str, wanted: str, limit_s: float, every_s: int = 2) -> str:
    """``line`` again and again until it prints ``wanted``, for about ``limit_s``; prints what it printed last."""
    times = max(1, round(limit_s / every_s))
    stop = f'[ "$got" = {shlex.quote(wanted)} ] && break'
    return f'for _ in $(seq {times}); do got=$({line}); {stop}; sleep {every_s}; done; echo "$got"'


def aws(region: str, profile: str | None, *words: str) -> str:
    """A line of the AWS CLI, to the region that is meant, whatever the shell's own is."""
    named = ["--profile", profile] if profile else []
    return shlex.join(["aws", "--region", region, *named, *words])


def none(action: Any, provider: Any) -> NoManual:
    """What is said where a provider has no commands."""
    return NoManual(
        f"{type(provider).__name__} tells no commands for {action.name}; do it in that service's own console or CLI"
    )
