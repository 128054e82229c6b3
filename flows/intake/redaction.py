"""What is kept of a delivery has no secrets in it: known ones by value, and what is named like one."""

from __future__ import annotations

import re

from tasks.secrets import redact

_NAMED = re.compile(
    r'("[^"\\]{0,40}(?:secret|token|passw(?:or)?d|api_?-?key|authorization|credential)[^"\\]{0,40}"\s*:\s*)"(?:[^"\\]|\\.)*"',
    re.IGNORECASE,
)
_IN_URL = re.compile(r"([?&](?:access_|api_?)?(?:token|secret|password|key|sig)=)[^&\"\\\s#]+", re.IGNORECASE)
_IN_PATH = re.compile(r"(/alerts/[^/\s\"]+/)[^/\s\"]+")


def without_secrets(text: str) -> str:
    """``text`` (JSON or not) with secrets as ``***``. JSON stays JSON."""
    found = redact(text)
    found = _NAMED.sub(r'\1"***"', found)
    return _IN_PATH.sub(r"\1***", _IN_URL.sub(r"\1***", found))
