"""PostgreSQL 13 and newer with streaming replication, operated over SQL and host commands.

The parts: ``_nodes`` (what the system file says), ``_reading``, ``_fencing``, ``_replicating``, ``_inspected``;
``_session`` is the connection that never blocks longer than its time-outs.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel

from tasks.database._comparing import Comparing
from tasks.database._inspected import Inspected
from tasks.database._nodes import PostgresSettings
from tasks.database._updating import Updating
from tasks.database._vacuuming import Vacuuming


class PostgreSql(Inspected, Vacuuming, Comparing, Updating):
    """Fulfils every Protocol of ``protocol`` but ``Pooler``, and ``_sizes.Vacuumed`` and ``_workload.Reviewed``."""

    Settings: ClassVar[type[BaseModel]] = PostgresSettings


PROVIDER = PostgreSql
