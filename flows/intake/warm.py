"""Keeps runners waiting, so that a run begins within a moment of its alert (``flows.warm`` is the runner)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Callable
from typing import Any

from flows.engine import handover, launch
from tasks.errors import LeaseHeld, RelightError

COMMAND = [sys.executable, "-P", "-c", "from flows import warm; warm.main()"]
BEGIN_S = 60.0
"""How long a run may take to begin: taking a lease in a zone waits for its ttl."""


class Warm:
    """Waiting runners, ``count`` of them: so many runs at once begin fast. Use it from one event loop."""

    def __init__(
        self,
        say: Callable[[str], None] = lambda _text: None,
        command: list[str] | None = None,
        count: int = 1,
    ) -> None:
        self._say, self._command, self._count = say, command or COMMAND, count
        self._waiting: deque[asyncio.Task[Process]] = deque()
        self._refill: asyncio.Task[None] | None = None
        self._begun: set[asyncio.Task[int]] = set()

    def prepare(self) -> None:
        """Have runners waiting; at once where there are enough. They are started one by one: each is busy at first."""
        while self._waiting and _failed(self._waiting[0]):
            self._waiting.popleft()
        if not self._waiting:
            self._waiting.append(asyncio.create_task(self._spawn()))
        if self._count > 1 and (self._refill is None or self._refill.done()):
            self._refill = asyncio.create_task(self._filled())

    async def _filled(self) -> None:
        while True:
            await asyncio.wait(set(self._waiting) or {asyncio.create_task(asyncio.sleep(0))})
            if len(self._waiting) >= self._count or any(_failed(one) for one in self._waiting):
                return
            self._waiting.append(asyncio.create_task(self._spawn()))

    async def start(self, request: launch.Request) -> str:
        """The id of the run, once it has begun. Raises RelightError with what the runner says."""
        return await self.hand(handover.pack(request))

    async def hand(self, asked: str) -> str:
        """Hand a line to a waiting runner: what it says it has begun. Raises RelightError with what it says."""
        for _ in range(2):
            self.prepare()
            runner = self._waiting.popleft()
            try:
                process = await runner
                assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - both are pipes
                process.stdin.write(asked.encode() + b"\n")
                await process.stdin.drain()
                said = await asyncio.wait_for(process.stdout.readline(), BEGIN_S)
                process.stdin.close()
                self._went(process)
                return _run_id(said)
            except (OSError, _Gone) as e:
                self._say(f"a waiting runner was gone ({e}); starting another one")
            except TimeoutError as e:
                raise RelightError(f"the run did not begin within {BEGIN_S:g} s; see relight status last") from e
            finally:
                self.prepare()
        raise RelightError("two runners in a row died before they began; see the log of relight serve")

    def _went(self, process: Process) -> None:
        # kept until it ends: asyncio kills a process whose transport nobody refers to any more
        begun = asyncio.create_task(process.wait())
        self._begun.add(begun)
        begun.add_done_callback(self._begun.discard)

    async def close(self) -> None:
        """Let the waiting runners go. Runs that began go on."""
        if self._refill is not None:
            self._refill.cancel()
        while self._waiting:
            runner = self._waiting.popleft()
            runner.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError, _Gone):
                process = await runner
                if process.stdin is not None:
                    process.stdin.close()
                await process.wait()

    async def _spawn(self) -> Process:
        # a session of its own: what stops us by a signal to our group must not stop a recovery
        process = await asyncio.create_subprocess_exec(*self._command, stdin=PIPE, stdout=PIPE, start_new_session=True)
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        try:
            if "ready" not in _answer(await process.stdout.readline()):
                raise _Gone("it did not say that it is ready")
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        return process


class _Gone(Exception):
    """The runner ended before it was of use."""


def _failed(runner: asyncio.Task[Process]) -> bool:
    """It could not be started, or has ended while it waited."""
    if not runner.done():
        return False
    return runner.cancelled() or runner.exception() is not None or runner.result().returncode is not None


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
