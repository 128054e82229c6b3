"""Waiting for a condition, in every test of real parts: on two busy cores a thing is late before it is wrong."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import psycopg

PATIENCE = 3
"""How many times what a thing takes on a quiet machine is waited for. Only a test that fails pays for it."""

NOT_YET = (
    httpx.HTTPError, psycopg.OperationalError, OSError, subprocess.TimeoutExpired,
    LookupError, StopIteration, json.JSONDecodeError,
)  # fmt: skip
"""What a part that is busy, or what is not yet there or half written, answers: the next look may do better."""


def until(condition: Callable[[], Any], seconds: float = 30.0, what: str = "it") -> Any:
    """The first true value of ``condition``; AssertionError where none comes in ``PATIENCE`` times ``seconds``."""
    deadline, pause = time.monotonic() + seconds * PATIENCE, threading.Event()
    last: Exception | None = None
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except NOT_YET as e:
            last = e
        pause.wait(0.02)
    raise AssertionError(f"{what} is not true within {seconds * PATIENCE:.0f} s; last error: {last}")
