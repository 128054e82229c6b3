"""The verbs of a replicated database."""

from tasks.database._fence import Fence
from tasks.database._pooling import Pause, Resume, Verify
from tasks.database._promote import Promote
from tasks.database._replicas import CatchUp, Follow, Protect, ReadyToSwitch, Rejoin
from tasks.database._restore import Restart, Restore

__all__ = [
    "CatchUp", "Fence", "Follow", "Pause", "Promote", "Protect", "ReadyToSwitch", "Rejoin", "Restart", "Restore",
    "Resume", "Verify",
]  # fmt: skip
