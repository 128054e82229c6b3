"""How a person reaches a server: psql and pg_isready, with the address and the account that relight uses."""

from __future__ import annotations

import shlex

from tasks.database._nodes import Nodes
from tasks.database._session import endpoint
from tasks.manual import secret


class ByPsql(Nodes):
    """Fulfils ``tasks.database.manual.Reached``."""

    def psql(self, node: str, *statements: str) -> str:
        """See ``tasks.database.manual.Reached``."""
        host, port = endpoint(self._address(node))
        words = ["psql", "-h", host, "-p", str(port), "-U", self._settings.user, "-d", self._settings.database, "-XAt"]
        words += [word for statement in statements for word in ("-c", statement)]
        timeout = f"PGCONNECT_TIMEOUT={max(2, round(self._settings.connect_timeout))} "
        mode = f"PGSSLMODE={self._settings.sslmode} " if self._settings.sslmode != "prefer" else ""
        password = f'PGPASSWORD="{secret(self._settings.password)}" ' if self._settings.password else ""
        return timeout + mode + password + shlex.join(words)

    def alive_line(self, node: str) -> str:
        """See ``tasks.database.manual.Reached``."""
        host, port = endpoint(self._address(node))
        return shlex.join(["pg_isready", "-h", host, "-p", str(port), "-t", "3"])
