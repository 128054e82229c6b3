"""HAProxy through its runtime API (stats socket), one short connection a command.

Source: HAProxy 2.6 management guide, 9.3. A reload forgets what was set here unless the configuration has
``server-state-file`` and ``load-server-state-from-file global``; ``persist`` writes that file.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import tempfile
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from tasks.contract import Surroundings, in_thread
from tasks.errors import BadInput, EffectUnknown, Rejected, Unreachable
from tasks.quantities import Duration
from tasks.traffic import _runtime as runtime
from tasks.traffic.protocol import Server
from tasks.variables import expand

_LIMIT = 16 * 2**20
"""Bytes of an answer; a thousand servers are well below 1 MiB."""


class SiteBalancer(BaseModel):
    """One site's HAProxy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    socket: str
    """Path of the stats socket, or ``host:port`` of one on TCP. It needs ``level admin``."""
    state_file: str | None = None
    """The file that the configuration names in ``server-state-file``."""


class BalancerSettings(BaseModel):
    """As in ``runbooks/lab/system.yaml``, component ``traffic``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout: Duration = 2.0
    """Of each command, connection included."""
    sites: dict[str, SiteBalancer] = Field(min_length=1)


class _Sockets:
    """The runtime API of each site's HAProxy: one command a connection, bounded."""

    def __init__(self, settings: BalancerSettings, around: Surroundings) -> None:
        self._settings = settings
        self._component = around.component

    async def _ask(self, site: str, command: str) -> str:
        """Raises Unreachable when there is no answer."""
        label = self._label(site)
        try:
            answer = await self._talk(site, command)
        except (TimeoutError, OSError, asyncio.LimitOverrunError) as e:
            why = str(e) or f"no answer within {self._settings.timeout:g} s"
            raise Unreachable(f"{label} does not answer `{command}`: {why}") from e
        if not answer.strip():
            raise Unreachable(f"{label} closed the connection without an answer to `{command}`")
        return answer

    async def _set(self, site: str, command: str) -> None:
        """An empty line is the only good answer. Raises EffectUnknown when there is none."""
        label = self._label(site)
        try:
            answer = await self._talk(site, command)
        except (TimeoutError, OSError) as e:
            why = str(e) or f"no answer within {self._settings.timeout:g} s"
            raise EffectUnknown(f"{label}: `{command}` was sent, but {why}") from e
        if not answer:
            raise EffectUnknown(f"{label}: `{command}` was sent, but the connection closed without an answer")
        if answer.strip():
            raise runtime.refusal(label, command, answer)

    async def _talk(self, site: str, command: str) -> str:
        """Send one line and read until HAProxy closes. Raises Unreachable only while nothing was sent."""
        async with asyncio.timeout(self._settings.timeout):
            reader, writer = await self._connect(site)
            try:
                writer.write(f"{command}\n".encode())
                await writer.drain()
                answer = bytearray()
                while chunk := await reader.read(65536):
                    answer += chunk
                    if len(answer) > _LIMIT:
                        raise OSError(f"the answer is longer than {_LIMIT} bytes")
                return answer.decode(errors="replace")
            finally:
                writer.close()

    async def _connect(self, site: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        where = expand(self._site(site).socket)
        try:
            # Half of the time, so that a connection that never comes is told from an answer that never comes.
            async with asyncio.timeout(self._settings.timeout / 2):
                if "/" in where:
                    return await asyncio.open_unix_connection(where)
                host, _, port = where.rpartition(":")
                return await asyncio.open_connection(host, int(port))
        except ValueError as e:
            raise BadInput(f"{self._label(site)}: expected a path or host:port as socket") from e
        except PermissionError as e:
            raise Rejected(f"{self._label(site)}: this user may not open the socket; see `stats socket … mode`") from e
        except FileNotFoundError as e:
            raise Unreachable(f"{self._label(site)}: there is no such socket. Is HAProxy down?") from e
        except ConnectionRefusedError as e:
            raise Unreachable(f"{self._label(site)}: nothing listens on it. HAProxy is down.") from e
        except (TimeoutError, OSError) as e:
            raise Unreachable(f"{self._label(site)}: no connection: {str(e) or 'timed out'}") from e

    def _label(self, site: str) -> str:
        return f"{self._component}: HAProxy of {site} at {expand(self._site(site).socket)}"

    def _site(self, site: str) -> SiteBalancer:
        try:
            return self._settings.sites[site]
        except KeyError:
            known = ", ".join(self._settings.sites)
            raise BadInput(f"{self._component}: no balancer in site {site!r}; there is one in: {known}") from None


class HaProxy(_Sockets):
    """Fulfils ``tasks.traffic.protocol.Balancer``. A server's site is its name up to the first dash."""

    Settings: ClassVar[type[BaseModel]] = BalancerSettings
    closes_sessions: ClassVar[bool] = True

    def sites(self) -> tuple[str, ...]:
        return tuple(self._settings.sites)

    def line(self, site: str, *commands: str) -> str:
        """See ``tasks.traffic.manual.ByHand``."""
        where = expand(self._site(site).socket)
        way = f"UNIX-CONNECT:{where}" if "/" in where else f"TCP:{where}"
        return f"echo {shlex.quote('; '.join(commands))} | socat -t {self._settings.timeout:g} - {shlex.quote(way)}"

    async def servers(self, site: str, pool: str) -> tuple[Server, ...]:
        pool = _word(pool)
        # -1 is "all", type 4 is "server". Not `show stat POOL`: a frontend of the same name would answer instead.
        # One connection, so that both answers are of the same moment, nearly.
        command = f"show servers state {pool};show stat -1 4 -1"
        answer = await self._ask(site, command)
        state, separator, stat = answer.partition("# pxname")
        if not separator or not state.startswith("1\n"):
            raise runtime.refusal(self._label(site), command, answer)
        return runtime.servers(pool, state, separator + stat)

    async def set_admin(self, site: str, pool: str, server: str, admin: str) -> None:
        if admin not in ("ready", "drain", "maint"):
            raise BadInput(f"{self._component}: admin state {admin!r}; expected ready, drain or maint")
        await self._set(site, f"set server {_word(pool)}/{_word(server)} state {admin}")

    async def set_weight(self, site: str, pool: str, server: str, weight: int) -> None:
        await self._set(site, f"set server {_word(pool)}/{_word(server)} weight {weight}")

    async def close_sessions(self, site: str, pool: str, server: str) -> None:
        await self._set(site, f"shutdown sessions server {_word(pool)}/{_word(server)}")

    async def persist(self, site: str) -> None:
        """Raises Rejected when the file cannot be written: a reload would then undo what was set."""
        state_file = self._site(site).state_file
        if state_file is None:
            raise Rejected(f"{self._label(site)}: no state_file in its settings, so a reload forgets what was set")
        path = Path(expand(state_file))
        command = "show servers state"
        text = await self._ask(site, command)
        if not text.startswith("1\n"):
            raise runtime.refusal(self._label(site), command, text)
        try:
            await in_thread(lambda: _write(path, text))
        except OSError as e:
            raise Rejected(
                f"{self._label(site)}: cannot write state_file {path}: {e.strerror}. A reload would undo what was set."
            ) from e

    async def aclose(self) -> None:
        """Nothing is held open between calls."""


def _word(text: str) -> str:
    """A name that is safe inside a command: a ``;`` or a space in it would start another one."""
    if not text or not all(c.isalnum() or c in "-_.:" for c in text):
        raise BadInput(f"{text!r} is no name of a pool or server (letters, digits and -_.: only)")
    return text


def _write(path: Path, text: str) -> None:
    """Whole or not at all, also after a power cut: HAProxy must never read half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


PROVIDER = HaProxy
