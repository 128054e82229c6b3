"""Episodes in the inbox, as whoever asks a sender what fires needs them. Changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from flows.intake.event import Event
from flows.intake.history import Entry, History
from flows.intake.inbox import of_its_episode


@dataclass(frozen=True)
class Episodes:
    """What an inbox knows of episodes."""

    history: History

    def of_its_episode(self, event: Event) -> Event:
        """As ``inbox.of_its_episode``: under the key that is known already."""
        with self.history.reading() as db:
            return of_its_episode(db, event)

    def wanting(self, episode: str) -> bool:
        """Nothing fit to decide about has come of an episode that fires: it is unknown, or was left out in part."""
        known = self.history.of_episode(episode)
        if any(e.event.kind == "resolved" for e in known) or any(e.run_id for e in known):
            return False
        return not any(e.event.kind == "firing" and not e.event.truncated for e in known)

    def open(self, endpoint: str) -> dict[str, Event]:
        """Episode -> its first event, of those of an endpoint that fire."""
        with self.history.reading() as db:
            rows = db.execute(
                "SELECT p.key, e.event FROM episodes p JOIN events e ON e.episode = p.key AND e.fresh = 1"
                " WHERE p.endpoint = ? AND p.fired_at IS NOT NULL AND p.closed_at IS NULL ORDER BY e.id DESC",
                (endpoint,),
            )
            return {key: Event.model_validate_json(text) for key, text in rows}

    def asked(self) -> list[Entry]:
        """Events that a person was asked about, and that nobody answered; oldest first."""
        with self.history.reading() as db:
            rows = db.execute("SELECT id FROM events WHERE outcome = 'ask' ORDER BY id").fetchall()
        return [self.history.entry(number) for (number,) in rows]

    def proposing(self) -> bool:
        """A run is proposed: something is held, asked for, or about to start."""
        with self.history.reading() as db:
            return (
                db.execute("SELECT 1 FROM events WHERE outcome IN ('hold', 'ask', 'start') LIMIT 1").fetchone()
                is not None
            )
