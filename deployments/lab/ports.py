"""Is an address free, and who holds it if not. Sources: bind(2), socket(7) SO_REUSEADDR, proc(5) ``net/tcp``."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from registry import LabError

SHOWN = 6


def check_free(listens: Iterable[tuple[str, str]]) -> None:
    """``listens``: (process name, ``host:port`` or ``udp:host:port``). Raises LabError naming every taken address."""
    taken = [(name, address) for name, address in listens if not _free(address)]
    if taken:
        lines = [f"  {address} for {name}: held by {_holder(address)}" for name, address in taken[:SHOWN]]
        if len(taken) > SHOWN:
            lines.append(f"  and {len(taken) - SHOWN} more")
        raise LabError(
            "addresses that the lab needs are taken; end what holds them (a lab: `lab.py down` with its RELIGHT_LAB):\n"
            + "\n".join(lines)
        )


def _split(address: str) -> tuple[bool, str, int]:
    udp = address.startswith("udp:")
    host, _, port = address.removeprefix("udp:").rpartition(":")
    return udp, host, int(port)


def _free(address: str) -> bool:
    udp, host, port = _split(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as probe:
        if not udp:  # connections in TIME_WAIT do not count; a listener does
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as e:
            if e.errno == errno.EADDRINUSE:
                return False
            raise LabError(f"address {address} cannot be bound: {e.strerror}; the lab needs 127.0.0.0/8 on lo") from e
    return True


def _holder(address: str) -> str:
    """``PID (command line)`` as far as /proc tells."""
    udp, host, port = _split(address)
    inodes = _inodes("udp" if udp else "tcp", host, port)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            held = {os.readlink(fd) for fd in (entry / "fd").iterdir()}  # noqa: PTH115  socket:[N] is no path
            if held & inodes:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                return f"process {entry.name} ({command[:120]})"
        except OSError:  # gone, or somebody else's
            continue
    return "a process that /proc does not show to this user"


def _inodes(protocol: str, host: str, port: int) -> set[str]:
    # Addresses are hexadecimal in host byte order, per 32-bit word; all zeros is every address.
    own = socket.inet_aton(host)[::-1].hex().upper()
    found = set()
    for name, wild in ((protocol, "0" * 8), (f"{protocol}6", "0" * 32)):
        try:
            lines = Path(f"/proc/net/{name}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            address, _, hex_port = fields[1].partition(":")
            listening = protocol == "udp" or fields[3] == "0A"
            if listening and int(hex_port, 16) == port and address in (own, wild):
                found.add(f"socket:[{fields[9]}]")
    return found
