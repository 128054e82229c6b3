"""The verbs of a replicated database."""

from tasks.database._fence import Fence
from tasks.database._installed import RunInstalled
from tasks.database._plans import Plans
from tasks.database._pooling import Pause, Resume, Verify
from tasks.database._promote import Promote
from tasks.database._replicas import CatchUp, Follow, Protect, ReadyToSwitch, Rejoin
from tasks.database._restore import Restart, Restore
from tasks.database._sizing import Autovacuum, Limit, Replicas

__all__ = [
    "Autovacuum", "CatchUp", "Fence", "Follow", "Limit", "Pause", "Plans", "Promote", "Protect", "ReadyToSwitch",
    "Rejoin", "Replicas", "Restart", "Restore", "Resume", "RunInstalled", "Verify",
]  # fmt: skip
