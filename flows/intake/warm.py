"""Keeps one runner waiting, so that a run begins within a moment of its alert (``flows.warm`` is the runner)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from typing import Any

from flows.engine import handover, launch
from tasks.errors import LeaseHeld, RelightError

COMMAND = [sys.executable, "-P", "-c", "from flows import warm; warm.main()"]
BEGIN_S = 60.0
"""How long a run may take to begin: taking a lease in a zone waits for its ttl."""


class Warm:
    """One waiting runner. Use it from one event loop."""

    def __init__(self, say: Callable[[str], None] = lambda _text: None, command: list[str] | None = None) -> None:
        self._say, self._command = say, command or COMMAND
        self._waiting: asyncio.Task[Process] | None = None

    def prepare(self) -> None:
        """Have a runner waiting; at once where there is one."""
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._spawn())

    async def start(self, request: launch.Request) -> str:
        """The id of the run, once it has begun. Raises RelightError with what the runner says."""
        for _ in range(2):
            self.prepare()
            assert self._waiting is not None  # noqa: S101 - prepare made it
            runner = self._waiting
            self._waiting = None
            try:
                process = await runner
                assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - both are pipes
                process.stdin.write(handover.pack(request).encode() + b"\n")
                await process.stdin.drain()
                return _run_id(await asyncio.wait_for(process.stdout.readline(), BEGIN_S))
            except (OSError, _Gone) as e:
                self._say(f"a waiting runner was gone ({e}); starting another one")
            except TimeoutError as e:
                raise RelightError(f"the run did not begin within {BEGIN_S:g} s; see relight status last") from e
            finally:
                self.prepare()
        raise RelightError("two runners in a row died before they began; see the log of relight serve")

    async def close(self) -> None:
        """Let the waiting runner go. Runs that began go on."""
        if self._waiting is not None:
            self._waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError, _Gone):
                process = await self._waiting
                if process.stdin is not None:
                    process.stdin.close()
            self._waiting = None

    async def _spawn(self) -> Process:
        # a session of its own: what stops us by a signal to our group must not stop a recovery
        process = await asyncio.create_subprocess_exec(*self._command, stdin=PIPE, stdout=PIPE, start_new_session=True)
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        if "ready" not in _answer(await process.stdout.readline()):
            raise _Gone("it did not say that it is ready")
        return process


class _Gone(Exception):
    """The runner ended before it was of use."""


def _answer(line: bytes) -> dict[str, Any]:
    if not line:
        raise _Gone("it ended without a word")
    found: dict[str, Any] = json.loads(line)
    return found


def _run_id(line: bytes) -> str:
    found = _answer(line)
    if "run_id" in found:
        return str(found["run_id"])
    error = LeaseHeld if found.get("exit_code") == 3 else RelightError
    raise error(str(found.get("error", "it did not begin")))
