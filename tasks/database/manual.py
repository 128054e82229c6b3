"""The verbs of a database by hand: psql, and the commands of its hosts."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from tasks.contract import Context
from tasks.database._proof import look, writers
from tasks.database.protocol import Database, Pooler
from tasks.errors import NotYet
from tasks.manual import Command, Manual, NoManual, none

Answer = list[Command | NoManual]
REPOINT = """\
SELECT format('ALTER SYSTEM SET primary_conninfo = %L', regexp_replace(regexp_replace(setting, '\\mhost=\\S+',
 'host={host}'), '\\mport=\\S+', 'port={port}')) FROM pg_settings WHERE name = 'primary_conninfo' \\gexec
ALTER SYSTEM SET primary_slot_name = '{slot}';
SELECT pg_reload_conf();"""
"""psql's own ``\\gexec`` runs what the query made: the rest of the conninfo, and any password in it, is never shown."""


class Reached(Protocol):
    """A server that psql reaches."""

    def psql(self, node: str, *statements: str) -> str:
        """The command line that runs ``statements`` one after the other and prints bare values."""
        ...

    def alive_line(self, node: str) -> str:
        """The command line that tells whether anything answers there (pg_isready)."""
        ...


@runtime_checkable
class ByHand(Reached, Protocol):
    """A server that psql and its host's commands reach."""

    def host_line(self, command: str, node: str) -> str | None:
        """The command line of a host command; None where there is none."""
        ...

    def slot_of(self, node: str) -> str:
        """Its replication slot."""
        ...

    def address_for(self, node: str, site: str) -> tuple[str, str]:
        """(host, port) by which a node of ``site`` reaches ``node``."""
        ...


@runtime_checkable
class CloudByHand(Reached, Protocol):
    """A database that AWS runs: its CLI moves it, psql tells the truth. Reads; raises what the provider raises."""

    def status_line(self, node: str) -> str:
        """The command line that prints what AWS says of it, one word."""
        ...

    async def keeps_up(self, node: str) -> Answer:
        """That the replica ``node`` is there and gets what is written."""
        ...

    async def compared(self, node: str, primary: str | None) -> Answer:
        """That the replica ``node`` has everything that the fenced ``primary`` wrote."""
        ...

    async def fenced(self, node: str, *, orderly: bool) -> Answer:
        """``node`` takes no writes any more, with proof."""
        ...

    async def promoted(self, node: str, *, orderly: bool) -> Answer:
        """``node`` is the primary."""
        ...

    def follows(self) -> NoManual:
        """How the others come to follow."""
        ...


@runtime_checkable
class PoolerByHand(Protocol):
    """A pooler that psql reaches."""

    def psql(self, site: str, statement: str, *, console: bool) -> str: ...

    def name_of_database(self) -> str: ...


async def chosen(database: Database, site: str) -> str:
    """The node that would be the primary at ``site``: the one that is, else the most advanced replica, first of equals.

    Raises NotYet where none answers.
    """
    views = await look(database)
    here = [views[n] for n in database.nodes(site)]
    are = [v for v in here if v.node in writers(views)]
    able = are or [v for v in here if v.reach == "answers" and v.in_recovery]
    if not able:
        raise NotYet(f"no node of {site} answers, so none can be named; look again when one does")
    return max(able, key=lambda v: ((v.timeline or 0), (v.lsn or 0), -database.nodes().index(v.node))).node


async def confirm_failure(action: Any, ctx: Context) -> Answer:
    """Ask every node of the failed site."""
    database = ctx.component(action.database, Database)
    if not isinstance(database, ByHand | CloudByHand):
        return [none(action, database)]
    site = ctx.site(action.site)
    views = await look(database)
    asked = [n for n in database.nodes(site) if n in writers(views) or views[n].in_recovery is None]
    found: Answer = []
    for n in asked:
        why = f"{n}, the primary of {site}, must not answer; run it again from the other site. Where it says `accepting"
        why += " connections`, it lives: stop here and think again."
        found.append(Command(f"{database.alive_line(n)} || true", "no response", why))
        if isinstance(database, CloudByHand):
            why = "What AWS says of it. `available` proves nothing; `failed`, or no answer, fits."
            found.append(Command(f"{database.status_line(n)} || true", "(its status)", why))
    return found or [NoManual(f"{site} has no primary: nothing to confirm")]


async def fence(action: Any, ctx: Context) -> Answer:
    """End the old primary by its host, else make it read only; then prove it."""
    database = ctx.component(action.component, Database)
    if not isinstance(database, ByHand | CloudByHand):
        return [none(action, database)]
    views = await look(database)
    nodes = [n for n in database.nodes(ctx.site(action.site)) if n in writers(views) or views[n].in_recovery is None]
    found: Answer = []
    for node in nodes:
        if isinstance(database, CloudByHand):
            found += await database.fenced(node, orderly=ctx.run.mode == "graceful")
            continue
        line = database.host_line("stop" if ctx.run.mode == "graceful" else "kill", node)
        if line is not None:
            found.append(Command(line, "(nothing; exit status 0)", f"{node} must never take a write again."))
        else:
            read_only = ("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
            found.append(Command(database.psql(node, *read_only), "t", "Weaker than power off: do that if you can."))
        found += _proof(database, node, killed=line is not None)
    return found or [NoManual("no node of that site is a primary: nothing to fence")]


def _proof(database: ByHand, node: str, *, killed: bool) -> Answer:
    """That nobody can write there any more: its host says so, else it refuses a write itself."""
    why = f"Proof that {node} is fenced. Do not go on without it: two writers cannot be merged."
    if not killed:
        return [Command(database.psql(node, "SHOW transaction_read_only"), "on", why)]
    found: Answer = [Command(f"{database.alive_line(node)} || true", "no response", why)]
    status = database.host_line("status", node)
    return [*found, Command(status, '"running": false', "And its host says so.")] if status else found


async def promote(action: Any, ctx: Context) -> Answer:
    """Compare the replicas, promote the most advanced."""
    database, site = ctx.component(action.component, Database), ctx.site(action.site)
    if not isinstance(database, ByHand | CloudByHand):
        return [none(action, database)]
    node = await chosen(database, site)
    if isinstance(database, CloudByHand):
        return await database.promoted(node, orderly=ctx.run.mode == "graceful")
    lsn = "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())"
    found: Answer = [
        Command(
            database.psql(n, lsn), "an LSN such as 0/3000148", f"{n}: the higher one is promoted; of equals {node}."
        )
        for n in database.nodes(site)
    ]
    lines = ("ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()", "SELECT pg_promote()")
    why = "THE POINT OF NO RETURN. Writes do not wait for a standby from now on (database.protect puts that back)."
    found.append(Command(database.psql(node, *lines), "ALTER SYSTEM, t, t", why))
    found.append(Command(database.psql(node, "SELECT pg_is_in_recovery()"), "f", f"{node} is the primary."))
    return found


async def follow(action: Any, ctx: Context) -> Answer:
    """Point the other replicas at the new primary; what their conninfo says otherwise is kept, unseen."""
    database = ctx.component(action.component, Database)
    if isinstance(database, CloudByHand):
        return [database.follows()]
    if not isinstance(database, ByHand):
        return [none(action, database)]
    node = await chosen(database, ctx.site("target"))
    views = await look(database)
    found: Answer = []
    for other in (n for n, v in views.items() if n != node and v.in_recovery):
        host, port = database.address_for(node, database.site_of(other))
        slot = database.slot_of(other)
        made = (
            f"SELECT pg_create_physical_replication_slot('{slot}') WHERE NOT EXISTS"  # noqa: S608 - a name of letters
            f" (SELECT FROM pg_replication_slots WHERE slot_name = '{slot}')"
        )
        found.append(Command(database.psql(node, made), f"({slot},) or nothing", f"WAL is kept for {other}."))
        change = REPOINT.format(host=host, port=port, slot=slot)
        line = f"{database.psql(other)} <<'SQL'\n{change}\nSQL"
        found.append(
            Command(
                line,
                "ALTER SYSTEM, ALTER SYSTEM, t",
                f"{other} follows {node}. Go on where it does not answer: it is brought back later.",
            )
        )
    return found or [NoManual("there is no other replica that answers")]


async def ready_to_switch(action: Any, ctx: Context) -> Answer:
    """Look at the standbys."""
    database = ctx.component(action.component, Database)
    if isinstance(database, CloudByHand):
        return await database.keeps_up(await chosen(database, ctx.site(action.site)))
    if not isinstance(database, ByHand):
        return [none(action, database)]
    seen = "SELECT application_name, state, sync_state, replay_lag FROM pg_stat_replication"
    return [
        Command(database.psql(n, seen), "a line with `streaming` for each standby", "Nothing is changed by this.")
        for n in writers(await look(database))
    ]


async def catch_up(action: Any, ctx: Context) -> Answer:
    """Compare with the end of the fenced primary."""
    database = ctx.component(action.component, Database)
    if isinstance(database, CloudByHand):
        node = await chosen(database, ctx.site(action.site))
        return await database.compared(node, next(iter(writers(await look(database))), None))
    if not isinstance(database, ByHand):
        return [none(action, database)]
    why = "It must not move any more, and be the same on both; a primary that was stopped in order sent everything."
    lsn = "SELECT pg_last_wal_receive_lsn()"
    return [Command(database.psql(n, lsn), "an LSN", why) for n in database.nodes(ctx.site(action.site))]


async def pause(action: Any, ctx: Context) -> Answer:
    """PAUSE at the pooler's console."""
    pooler = ctx.component(action.pooler, Pooler)
    if not isinstance(pooler, PoolerByHand):
        return [none(action, pooler)]
    line = pooler.psql(ctx.site(action.site), f"PAUSE {pooler.name_of_database()}", console=True)
    return [Command(line, "PAUSE", "New queries wait; if it takes longer than 5 s, RESUME and look who writes.")]


async def resume(action: Any, ctx: Context) -> Answer:
    """RESUME at the pooler's console; one that was not paused says so."""
    pooler = ctx.component(action.pooler, Pooler)
    if not isinstance(pooler, PoolerByHand):
        return [none(action, pooler)]
    line = pooler.psql(ctx.site(action.site), f"RESUME {pooler.name_of_database()}", console=True)
    return [Command(f"{line} 2>&1 || true", "RESUME, or that it is not paused")]


async def verify(action: Any, ctx: Context) -> Answer:
    """A write through the pooler, and its reading back on another connection."""
    pooler = ctx.component(action.pooler, Pooler)
    if not isinstance(pooler, PoolerByHand):
        return [none(action, pooler)]
    site = ctx.site(action.site)
    write = (
        "INSERT INTO relight_probe (id, nonce) VALUES (1, 'by hand') ON CONFLICT (id) DO UPDATE SET nonce ="
        " excluded.nonce, at = now()"
    )
    read = "SELECT nonce, pg_is_in_recovery() FROM relight_probe WHERE id = 1"
    return [
        Command(pooler.psql(site, write, console=False), "INSERT 0 1"),
        Command(pooler.psql(site, read, console=False), "by hand|f", f"Clients of {site} write to the new primary."),
    ]


MANUAL: dict[str, Manual] = {
    "health.confirm_failure": confirm_failure,
    "database.catch_up": catch_up,
    "database.fence": fence,
    "database.follow": follow,
    "database.pause": pause,
    "database.promote": promote,
    "database.ready_to_switch": ready_to_switch,
    "database.resume": resume,
    "database.verify": verify,
}
