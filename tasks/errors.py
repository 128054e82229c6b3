"""The one tree of errors. A class answers two questions; an instance carries its facts.

* ``retryable``: may the same attempt succeed a moment later, with nothing changed by a person?
* ``state_known``: do we know that nothing was changed? False means the effect may have happened although
  the reply was lost, so the world must be observed again before anything else is done.
"""

from __future__ import annotations

from typing import Any, ClassVar


class RelightError(Exception):
    """Root of every error that relight raises on purpose.

    Args:
        message: names the object, what was expected, what was found, and what to do.
        facts: JSON-able details that go to the journal beside the message. Never a secret.
    """

    retryable: ClassVar[bool] = False
    state_known: ClassVar[bool] = True
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts

    def __str__(self) -> str:
        return self.message


class BadInput(RelightError):
    """A file, an argument or a reference is wrong. Nothing was started."""

    exit_code = 2


class MissingSecret(BadInput):
    """A secret reference (``env:``, ``file:`` …) resolves to nothing."""


class Unreachable(RelightError):
    """No connection could be made, so nothing was sent and nothing changed."""

    retryable = True


class NotYet(RelightError):
    """The world is moving towards the goal but is not there; asking again is right."""

    retryable = True


class NotWaitedFor(NotYet):
    """It is not there, and the run does not wait for it any longer, as it stops."""

    retryable = False


class Rejected(RelightError):
    """The other side understood and said no (permission, REFUSED, bad signature). Asking again will not help."""


class LostCompare(Rejected):
    """A compare-and-set found something else than what was expected: somebody else wrote in between."""


class EffectUnknown(RelightError):
    """The request was sent and no answer came: the effect may or may not have happened."""

    retryable = True
    state_known = False


class Breached(RelightError):
    """A check measured something beyond its limit, as it was to find out: the run failed; nothing was refused."""


class SafetyRefusal(RelightError):
    """A safety rule said no. Going on could make the outage worse; a person has to decide."""

    exit_code = 3


class Contradiction(SafetyRefusal):
    """Sources that should agree do not: one sees a healthy primary, another a dead one; two claim to be primary."""


class NotFenced(SafetyRefusal):
    """It could not be proven that the old primary takes no more writes."""


class LossAboveBudget(SafetyRefusal):
    """Promoting now would lose more than the RPO allows and no waiver names the loss."""


class UnhealthyTarget(SafetyRefusal):
    """What traffic or a name would be pointed at does not answer as healthy."""


class NotApproved(SafetyRefusal):
    """People were asked and did not say yes: one said no, or not enough answered in time."""


class LeaseHeld(SafetyRefusal):
    """Another run holds the system, or this run's epoch is no longer the newest."""
