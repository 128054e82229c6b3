"""The lease of a system that engines on several machines may run: a record in a store, renewed by compare-and-set.

Two promises make it one run. The holder acts only until ``ttl_s`` less a margin after it *began* its last good renewal,
by a clock that counts standing still and a suspended machine too. Whoever takes over waits until the record is at least
``ttl_s`` old, by the store's clock or by watching it not change for so long. Since the record was written after the
renewal began, the first has stopped when the second starts. What a call does that was sent before and lands later, only
an epoch that its receiver compares can refuse (RFC 2136 prerequisites; see ``docs/leases.md``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from flows.engine import killswitch, processes
from flows.engine.lease import Holder, refused, taken_over
from tasks.clock import Clock
from tasks.errors import EffectUnknown, LeaseHeld, LostCompare, RelightError, Unreachable
from tasks.leases.protocol import Engine, Held, LastRun, LeaseStore, Mandate
from tasks.quantities import show_duration

MARGIN = 0.2
"""Share of the ttl at its end in which the holder does not act any more: clocks run at slightly different rates."""
ROUNDS = 5
"""How often to look again when somebody else wrote in between, or a reply was lost."""


@dataclass
class StoreLease:
    """A held lease. Made by ``acquire``."""

    system: str
    store: LeaseStore
    holder: Holder
    held: Held
    _valid_until: float
    """By ``holder.elapsed``."""
    _lost: LeaseHeld | None = field(init=False, default=None)
    _trouble: str = field(init=False, default="")
    _over: bool = field(init=False, default=False)
    _mandate: Mandate | None = field(init=False, default=None)

    @classmethod
    async def acquire(cls, system: str, store: LeaseStore, holder: Holder, clock: Clock) -> StoreLease:
        """Take the lease with an epoch above every earlier one and above ``holder.floor``.

        Raises LeaseHeld naming who holds it; EffectUnknown when it cannot be told whether the lease was taken;
        Unreachable, Rejected.
        """
        taker = _Taker(system, store, replace(holder, ttl_s=store.ttl_s), clock)
        held, began = await taker.take()
        return cls(system, store, taker.holder, held, began + store.ttl_s * (1 - MARGIN))

    @property
    def epoch(self) -> int:
        return self.held.epoch

    @property
    def last(self) -> LastRun | None:
        return self.held.last

    def check(self) -> None:
        if self._lost is not None:
            raise self._lost
        if self.held.paused:
            raise killswitch.refusal(self.system, self.held.paused)
        if self._over:
            raise LeaseHeld(f"this run gave its lease of system {self.system} up; it changes nothing more")
        late_s = self.holder.elapsed() - self._valid_until
        if late_s > 0:
            why = self._trouble or "this engine stood still"
            raise LeaseHeld(
                f"this run has epoch {self.epoch}, and its lease of system {self.system} ran out"
                f" {show_duration(late_s)} ago ({why}): another engine may have taken over. This one changes nothing"
                f" more. Go on with: relight resume {self.held.run_id}",
                epoch=self.epoch,
            )

    async def keep(self, clock: Clock) -> None:
        while not self._over and self._lost is None:
            await self.renew()
            # in trouble, there is less time to lose
            await clock.sleep(self.store.ttl_s / (20 if self._trouble else 5))

    async def renew(self) -> None:
        """One renewal. Raises nothing: what went wrong shows in ``check``, once it matters."""
        began = self.holder.elapsed()
        new = replace(
            self.held,
            renewals=self.held.renewals + 1,
            step=self.holder.doing(self.held.run_id),
            mandate=self._mandate or self.held.mandate,
        )
        try:
            await self._swap(new)
        except RelightError as e:
            self._trouble = str(e)
            return
        self._trouble = ""
        self._valid_until = max(self._valid_until, began + self.store.ttl_s * (1 - MARGIN))

    async def why(self) -> LeaseHeld | None:
        """Who took over, where the store can be asked; None if nobody did as far as it says."""
        if self._lost is None:
            try:
                now, _ = await self.store.read()
            except RelightError:
                return None
            if now is None or now.token != self.held.token:
                self._lost = taken_over(self.system, self.held, now)
        return self._lost

    async def charge(self, mandate: Mandate) -> None:
        self._mandate = mandate  # what is not written now, the next renewal writes
        for _ in range(2):
            await self.renew()
            # a renewal that was under way at the same moment makes ours fail, and the store is asked again
            if self.held.mandate == mandate or self._lost is not None or self.holder.elapsed() > self._valid_until:
                return

    async def end(self, last: LastRun | None, ended: str = "") -> None:
        if self._over or self._lost is not None:
            return
        self._over = True
        for _ in range(ROUNDS):
            mandate = self._mandate and replace(self._mandate, ended=ended)
            try:
                await self._swap(
                    replace(
                        self.held,
                        released=True,
                        last=last or self.held.last,
                        mandate=mandate or self.held.mandate,
                    )
                )
                return
            except LeaseHeld:
                return  # whoever took over has seen that this run did not end
            except RelightError as e:
                self._trouble = str(e)
        self.holder.say(
            f"the lease could not be given up ({self._trouble}); it runs out by itself in"
            f" {show_duration(self.store.ttl_s)}"
        )

    def drop(self) -> None:
        self._over = True

    async def _swap(self, new: Held) -> None:
        """Replace our record. Raises LeaseHeld when it is not ours any more; anything else that leaves it unchanged."""
        try:
            await self.store.swap(self.held, new)
        except (LostCompare, EffectUnknown) as e:
            now, _ = await self.store.read()
            if now is None or now.token != self.held.token:
                self._lost = taken_over(self.system, self.held, now)
                raise self._lost from e
            # Ours: this write or an earlier one of ours that came late, or a person acknowledged the last run.
            self.held = now
            if now != new:
                raise
            return
        self.held = new


@dataclass
class _Taker:
    """An engine that wants the lease."""

    system: str
    store: LeaseStore
    holder: Holder
    clock: Clock
    _free: Held | None = field(init=False, default=None)
    """The record under which, as was found out, nobody acts any more."""
    _mine: Held | None = field(init=False, default=None)
    _began: float = field(init=False, default=0.0)
    """When the first write of ``_mine`` began: a lost reply may hide that it was the first that counted."""

    async def take(self) -> tuple[Held, float]:
        """The record as written, and when writing it began at the earliest."""
        error: RelightError | None = None
        for _ in range(ROUNDS):
            old, age_s = await self.store.read()
            if self._mine is not None and old == self._mine:
                return old, self._began
            if old is not None and old != self._free:
                await self._must_be_free(old, age_s)
                self._free = old
            self.holder.may(replace(old, last=self.holder.last(old)) if old is not None else None)
            if self._mine is None or not self._fits(self._mine, old):
                self._mine, self._began = self.holder.next(old), self.holder.elapsed()
            try:
                await self.store.swap(old, self._mine)
            except (LostCompare, EffectUnknown) as e:
                error = e
                continue
            return self._mine, self._began
        if isinstance(error, EffectUnknown):
            raise error
        raise Unreachable(f"{self.store.where} was written by others {ROUNDS} times while this engine wanted it")

    def _fits(self, mine: Held, old: Held | None) -> bool:
        """What was meant to be written over an earlier record is what would be written over ``old``."""
        mandate = old.mandate if old else None
        return mine.last == self.holder.last(old) and mine.epoch > _epoch(old) and mine.mandate == mandate

    async def _must_be_free(self, old: Held, age_s: float | None) -> None:
        """Returns when nobody acts under ``old`` any more. Raises LeaseHeld."""
        if old.released or self.holder.gone(old.holder):
            return
        ttl_s = max(old.ttl_s, self.store.ttl_s)
        if age_s is None:
            await self._watch(old, ttl_s)
        elif age_s <= ttl_s:
            ago, left = show_duration(age_s), show_duration(ttl_s - age_s)
            more = f"renewed {ago} ago; if it died there, this can be tried again in {left}"
            raise refused(self.system, old, old.step or "at its start", more)

    async def _watch(self, old: Held, ttl_s: float) -> None:
        """As long as its holder may go without renewing it; that it is still the same, the swap compares once more."""
        self.holder.say(
            f"{old.run_id} ({old.holder}) has the lease; watching for {show_duration(ttl_s)} whether it is renewed"
        )
        since = self.holder.elapsed()
        while self.holder.elapsed() - since <= ttl_s:
            await self.clock.sleep(ttl_s / 20)
            try:
                now, _ = await self.store.read()
            except Unreachable:
                continue
            if now is not None and now != old and not now.released:
                more = "it renewed its lease while this engine watched"
                raise refused(self.system, now, now.step or "at its start", more)
            if now != old:
                return


def _epoch(held: Held | None) -> int:
    return held.epoch if held else 0


async def acknowledged(
    store: LeaseStore, change: Callable[[Held, bool], Held], gone: Callable[[Engine], bool] = processes.gone
) -> Held:
    """Change what the record says of the last run, be the lease held or not; the new record.

    A holder takes such a change over at its next renewal. Raises what ``change`` raises, EffectUnknown, Unreachable,
    Rejected.
    """
    for _ in range(ROUNDS):
        old, _ = await store.read()
        now = old or Held(0, "")
        new = change(now, gone(now.holder))
        try:
            await store.swap(old, new)
        except LostCompare:
            continue
        return new
    raise Unreachable(f"{store.where} was written by others {ROUNDS} times meanwhile; try again")
