"""References to secrets, resolved only at the moment of use and never written anywhere.

``env:NAME``, ``file:PATH`` (``~`` and ``$VARIABLE`` expand), ``prefect:BLOCK``, ``aws-secret:ID`` (``aws_secrets``).
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, SecretStr

from tasks.errors import MissingSecret

SCHEMES = ("env", "file", "prefect", "aws-secret")

_resolved: set[str] = set()
resolvers: dict[str, Callable[[str], str]] = {}
"""Schemes that other layers add (``prefect`` by the flows); scheme -> (name -> value)."""


def _check(text: str) -> str:
    scheme, _, rest = text.partition(":")
    if scheme not in SCHEMES or not rest:
        expected = ", ".join(f"{s}:…" for s in SCHEMES)
        # The offending value is not repeated: it may be the secret itself, pasted by mistake.
        raise ValueError(f"expected a reference to a secret ({expected}), never the value itself")
    return text


SecretRef = Annotated[str, AfterValidator(_check)]


def resolve(reference: str) -> SecretStr:
    """The value behind ``reference``. May block for some seconds where somebody else keeps it; see ``resolved``.

    Raises MissingSecret, and Unreachable where a keeper does not answer. Messages name the reference, never a value.
    """
    scheme, _, name = reference.partition(":")
    value: str | None = None
    if scheme == "env":
        value = os.environ.get(name)
    elif scheme == "file":
        path = Path(os.path.expandvars(name)).expanduser()
        try:
            value = path.read_text(encoding="utf-8").strip()
        except OSError as e:
            raise MissingSecret(f"secret {reference}: cannot read {path}: {e.strerror}. Create it, mode 0600.") from e
    elif scheme == "aws-secret":
        value = importlib.import_module("tasks.aws_secrets").fetch(name)  # boto3 only where it is used
    elif scheme in resolvers:
        value = resolvers[scheme](name)
    if not value:
        raise MissingSecret(f"secret {reference} is not set or empty. Set it where the engine runs.")
    _resolved.add(value)
    return SecretStr(value)


async def resolved(reference: str) -> SecretStr:
    """``resolve`` without stopping the event loop."""
    if reference.partition(":")[0] in ("env", "file"):
        return resolve(reference)
    return await asyncio.to_thread(resolve, reference)


def redact(text: str) -> str:
    """``text`` with every secret value that was resolved in this process replaced by ``***``."""
    for value in sorted(_resolved, key=len, reverse=True):  # one secret may be the start of another
        if len(value) >= 4:  # shorter values would shred ordinary words
            text = text.replace(value, "***")
    return text
