"""Where the receiver listens, as ``--listen`` says it; read without the modules of a web server."""

from __future__ import annotations

from tasks.errors import BadInput


def host_and_port(listen: str) -> tuple[str, int]:
    """``HOST:PORT``, ``[::1]:PORT`` -> both, the host without brackets. Raises BadInput."""
    host, _, port = listen.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 1 << 16:
        raise BadInput(f"--listen {listen!r}: expected HOST:PORT, for example 127.0.0.1:8420")
    return host.strip("[]"), int(port)
