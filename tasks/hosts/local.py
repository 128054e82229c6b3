"""Commands on this machine, as the system file has them. Fulfils ``tasks.hosts.protocol.Hosts``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import tempfile
from collections.abc import Mapping
from typing import IO, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from tasks.contract import Surroundings
from tasks.errors import BadInput, EffectUnknown, Unreachable
from tasks.hosts.protocol import Ran
from tasks.secrets import redact
from tasks.variables import expand

MOST_BYTES = 8192
UNREACHABLE = 255
"""Exit status by which a command says that the host could not be reached, as ssh(1) has it."""

_REAP_S = 0.2
"""SIGKILL ends a process at once, unless it hangs in the kernel; then nobody waits for it."""

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class LocalSettings(BaseModel):
    """``commands``: name -> argument list; ``{target}`` and other ``{names}`` are filled in, each as one argument.

    ``targets``: what commands may act on; every value that is filled in must be one of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    commands: dict[str, list[str]] = Field(min_length=1)
    targets: list[str] = Field(min_length=1)


class Local:
    """Runs configured argument lists, never a shell."""

    Settings: ClassVar[type[BaseModel]] = LocalSettings

    def __init__(self, settings: LocalSettings, around: Surroundings) -> None:
        self._settings, self._name = settings, around.component

    async def aclose(self) -> None:
        """Nothing is held open."""

    def knows(self, command: str) -> bool:
        """Does the system file have ``command``?"""
        return command in self._settings.commands

    def line(self, command: str, target: str) -> str:
        """See ``tasks.hosts.protocol.ByHand``."""
        return shlex.join(self._argv(command, {"target": target}))

    async def run(self, command: str, target: str, *, timeout_s: float, values: Mapping[str, str] | None = None) -> Ran:
        """See the Protocol. The command's whole process group is killed when it does not end in time."""
        argv = self._argv(command, {"target": target, **(values or {})})
        # Files, not pipes: a server that the command leaves running (pg_ctl start) would keep a pipe open for ever.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
                )
            except OSError as e:
                raise Unreachable(f"cannot run command {command!r} ({argv[0]}): {e.strerror}") from e
            try:
                async with asyncio.timeout(timeout_s):
                    status = await process.wait()
            except TimeoutError:
                raise EffectUnknown(
                    f"command {command!r} for {target} did not end within {timeout_s:g} s and was killed", target=target
                ) from None
            finally:
                if process.returncode is None:
                    await _kill(process)
            ran = Ran(status, _tail(out), _tail(err))
        if ran.status == UNREACHABLE:
            raise Unreachable(
                f"the host of {target} cannot be reached: {ran.stderr or 'exit status 255'}", target=target
            )
        return ran

    def _argv(self, command: str, values: Mapping[str, str]) -> list[str]:
        if command not in self._settings.commands:
            known = ", ".join(sorted(self._settings.commands))
            raise BadInput(f"component {self._name} has no command {command!r}; it has {known}")
        for name, value in values.items():
            if value not in self._settings.targets:
                known = ", ".join(self._settings.targets)
                raise BadInput(f"component {self._name}: {name} {value!r} is not one of its targets ({known})")
        return [self._filled(command, part, values) for part in self._settings.commands[command]]

    def _filled(self, command: str, part: str, values: Mapping[str, str]) -> str:
        def value(match: re.Match[str]) -> str:
            if match[1] not in values:
                raise BadInput(
                    f"command {command!r} of component {self._name} needs {{{match[1]}}}, which is not given"
                )
            return values[match[1]]

        return _PLACEHOLDER.sub(value, expand(part))


async def _kill(process: asyncio.subprocess.Process) -> None:
    """The process and its whole group; waits a moment for its end, so that nothing of it is left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _REAP_S)


def _tail(file: IO[bytes]) -> str:
    """The last ``MOST_BYTES`` of what was written. Redacted before it is cut: half a secret would not be found."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2 * MOST_BYTES))
    text = redact(file.read().decode("utf-8", "replace").strip())
    return text.encode()[-MOST_BYTES:].decode("utf-8", "ignore")


PROVIDER = Local
