"""Dynamic update against a real BIND primary and secondary, read back through a real unbound."""

import asyncio
import base64
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dns.asyncquery
import dns.message
import dns.query
import dns.tsigkeyring
import dns.update
import pytest
from hanging import hang
from patience import until

from tasks.clock import LoopClock
from tasks.contract import Context, Done, RunInfo, Surroundings
from tasks.errors import (
    BadInput,
    EffectUnknown,
    LeaseHeld,
    LostCompare,
    NotYet,
    Rejected,
    SafetyRefusal,
    UnhealthyTarget,
    Unreachable,
)
from tasks.zones import actions
from tasks.zones.protocol import Owned, RRset
from tasks.zones.rfc2136 import PROVIDER

# BIND listens on addresses that an interface carries, and the loopback interface carries only 127.0.0.1.
PRIMARY, SECONDARY, RESOLVER = ("127.0.0.1", 5373), ("127.0.0.1", 5374), ("127.0.7.55", 5373)
WEST, EAST, SERVICE_PORT = "127.0.7.10", "127.0.7.20", 5380
DEAF = ("127.0.7.57", 5357)
NAME = "app.venue.test."
SECRETS = {"key": base64.b64encode(b"k" * 32).decode(), "other": base64.b64encode(b"o" * 32).decode()}
ZONE = """$TTL 60
@ IN SOA ns1.venue.test. root.venue.test. 10 3600 600 86400 1
  IN NS ns1
  IN NS ns2
ns1 IN A 127.0.7.53
ns2 IN A 127.0.7.54
app 2 IN A 127.0.7.10
alias IN CNAME app
foreign IN A 127.0.7.10
foreign IN TXT "heritage=external-dns,external-dns/owner=cluster"
locked IN A 127.0.7.10
"""

pytestmark = pytest.mark.real


def need(program):
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{program} is not installed")
    return found


def listening(where):
    with contextlib.suppress(OSError), socket.create_connection(where, 0.2):
        return True
    return False


@dataclass
class Dns:
    folder: Path
    processes: dict

    def stop(self, name):
        process = self.processes.pop(name)
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(60)


def started(home, *command):
    with (home / "log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def named(folder, role, where, zone):
    home = folder / role
    home.mkdir()
    (home / "named.conf").write_text(f"""
options {{
  directory "{home}"; listen-on port {where[1]} {{ {where[0]}; }}; listen-on-v6 {{ none; }};
  lock-file none; pid-file none; session-keyfile none; recursion no; notify-delay 0;
  notify explicit; also-notify {{ {SECONDARY[0]} port {SECONDARY[1]}; }}; transfer-source {where[0]};
  notify-source {where[0]}; allow-transfer {{ any; }}; minimal-responses no;
}};
controls {{ }};
key "relight-test." {{ algorithm hmac-sha256; secret "{SECRETS["key"]}"; }};
key "sha1-key." {{ algorithm hmac-sha1; secret "{SECRETS["key"]}"; }};
key "readonly." {{ algorithm hmac-sha256; secret "{SECRETS["key"]}"; }};
{zone}
""")
    return started(home, need("named"), "-g", "-n", "1", "-c", home / "named.conf")


def unbound(folder):
    home = folder / "unbound"
    home.mkdir()
    (home / "unbound.conf").write_text(f"""
server:
  directory: "{home}"
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  interface: {RESOLVER[0]}
  port: {RESOLVER[1]}
  outgoing-interface: {RESOLVER[0]}
  access-control: 127.0.0.0/8 allow
  do-not-query-localhost: no
  local-zone: "test." nodefault
  cache-min-ttl: 0
  num-threads: 1
  module-config: "iterator"
remote-control:
  control-enable: no
stub-zone:
  name: "venue.test"
  stub-addr: {PRIMARY[0]}@{PRIMARY[1]}
""")
    return started(home, need("unbound"), "-d", "-c", home / "unbound.conf")


@pytest.fixture
def system(tmp_path):
    with running(tmp_path) as dns_:
        yield dns_


@contextlib.contextmanager
def running(tmp_path, more=""):
    """Primary, secondary and resolver; ``more``: lines for the zone."""
    (tmp_path / "zone").write_text(ZONE + more)
    for name, value in SECRETS.items():
        (tmp_path / name).write_text(value + "\n")
    grant = "".join(
        f"grant relight-test. name {n} ANY; grant sha1-key. name {n} ANY; "
        for n in (NAME, f"_relight.{NAME}", "alias.venue.test.", "_relight.alias.venue.test.", "new.venue.test.",
                  "_relight.new.venue.test.", "foreign.venue.test.", "_relight.foreign.venue.test.")
    )  # fmt: skip
    primary = f'zone "venue.test" {{ type primary; file "{tmp_path}/zone"; update-policy {{ {grant} }}; }};'
    source = f"{PRIMARY[0]} port {PRIMARY[1]}"
    secondary = f'zone "venue.test" {{ type secondary; file "copy"; primaries {{ {source}; }}; notify no; }};'
    dns_ = Dns(tmp_path, {})
    try:
        dns_.processes["primary"] = named(tmp_path, "primary", PRIMARY, primary)
        dns_.processes["resolver"] = unbound(tmp_path)
        until(lambda: listening(PRIMARY), what="primary")
        dns_.processes["secondary"] = named(tmp_path, "secondary", SECONDARY, secondary)
        until(lambda: listening(SECONDARY) and listening(RESOLVER), what="secondary and resolver")
        until(lambda: answer(SECONDARY) == {WEST}, what="transfer to the secondary")
        yield dns_
    finally:
        for name in list(dns_.processes):
            dns_.stop(name)


def answer(where, name=NAME, rdtype="A"):
    try:
        reply = dns.query.udp(dns.message.make_query(name, rdtype), where[0], port=where[1], timeout=10)
    except dns.exception.Timeout:
        return None
    return {r.to_text() for rrset in reply.answer for r in rrset}


def address(where):
    return f"{where[0]}:{where[1]}"


def provider(folder, **changes):
    settings = {
        "zone": "venue.test.",
        "primary": address(PRIMARY),
        "servers": [address(PRIMARY), address(SECONDARY)],
        "resolvers": [address(RESOLVER)],
        "key_name": "relight-test.",
        "key_secret": f"file:{folder}/key",
        "timeout": "15s",
        "names": {
            NAME: {"ttl": 2, "A": {"west": [WEST], "east": [EAST]}},
            "new.venue.test.": {"ttl": 2, "A": {"west": [WEST], "east": [EAST]}},
            "alias.venue.test.": {"ttl": 2, "A": {"west": [WEST], "east": [EAST]}},
            "foreign.venue.test.": {"ttl": 2, "A": {"west": [WEST], "east": [EAST]}},
            "locked.venue.test.": {"ttl": 2, "A": {"west": [WEST], "east": [EAST]}},
        },
    }
    around = Surroundings("test", "dns", ("west", "east"), LoopClock(), lambda _name: None)
    return PROVIDER(PROVIDER.Settings.model_validate({**settings, **changes}), around)


def context(zone, epoch=1, left_s=90.0, earlier=(), guard=lambda: None):
    clock = LoopClock()
    run = RunInfo("r1", "test", "failover", "forced", epoch, "2026-01-01T00:00:00+00:00")
    roles = {"west": "west", "east": "east", "target": "east"}
    return Context(run, clock, roles, lambda _n: zone, clock.monotonic() + left_s, earlier=earlier, guard=guard)


def by_hand(fill):
    """An update by somebody else, with the same key and no prerequisites."""
    keyring = dns.tsigkeyring.from_text({"relight-test.": ("hmac-sha256", SECRETS["key"])})
    update = dns.update.Update("venue.test.", keyring=keyring)
    fill(update)
    assert dns.query.tcp(update, PRIMARY[0], port=PRIMARY[1], timeout=30).rcode() == 0


async def service(host=EAST):
    """Something that accepts connections, as the front of a site does."""
    return await asyncio.start_server(lambda _r, w: w.close(), host, SERVICE_PORT)


def point(**changes):
    return actions.Point.model_validate(
        {"name": "app.venue.test", "site": "target", "probe": f"tcp:{SERVICE_PORT}", **changes}
    )


def test_swap_replaces_record_and_epoch_at_once(system):
    async def body():
        zone = provider(system.folder)
        old = await zone.read(NAME, "A")
        assert old == Owned(RRset(NAME, "A", 2, (WEST,)), None, 10)
        await zone.swap(old, zone.wanted(NAME, "A", "east"), 3)
        now = await zone.read(NAME, "A")
        assert now == Owned(RRset(NAME, "A", 2, (EAST,)), 3, 11)
        assert answer(PRIMARY, "_relight." + NAME, "TXT") == {'"epoch=3 owner=relight"'}
        # Once more with the new state: the TTL alone may differ and is not part of the compare.
        await zone.swap(now, RRset(NAME, "A", 5, (WEST,)), 4)
        assert (await zone.read(NAME, "A")).rrset == RRset(NAME, "A", 5, (WEST,))

    asyncio.run(body())


def test_swap_is_lost_when_anything_changed_in_between(system):
    async def body():
        zone = provider(system.folder)
        old, east = await zone.read(NAME, "A"), zone.wanted(NAME, "A", "east")
        by_hand(lambda u: u.add(NAME, 2, "A", "127.0.7.99"))  # the old value is still there, but not alone
        with pytest.raises(LostCompare, match=r"127\.0\.7\.99.*NXRRSET|NXRRSET.*127\.0\.7\.99"):
            await zone.swap(old, east, 3)
        assert answer(PRIMARY) == {WEST, "127.0.7.99"}
        assert (await zone.read(NAME, "A")).epoch is None
        with pytest.raises(LostCompare, match="YXRRSET"):
            await zone.swap(Owned(None, None, 10), east, 3)

    asyncio.run(body())


def test_an_older_epoch_never_writes(system):
    async def body():
        zone = provider(system.folder)
        first = await zone.read(NAME, "A")
        east, west = zone.wanted(NAME, "A", "east"), zone.wanted(NAME, "A", "west")
        await zone.swap(first, east, 7)
        with pytest.raises(LeaseHeld, match="epoch 7"):
            await zone.swap(await zone.read(NAME, "A"), west, 6)
        # A stale engine that still believes in the first state learns it from the server's refusal.
        with pytest.raises(LeaseHeld, match="epoch 7"):
            await zone.swap(first, west, 6)
        # The wanted value is there, but it is not this run that wrote it.
        with pytest.raises(LostCompare):
            await zone.swap(first, east, 8)
        # The same value with another epoch is somebody else's write too.
        with pytest.raises(LostCompare):
            await zone.swap(replace(await zone.read(NAME, "A"), epoch=5), west, 8)
        assert answer(PRIMARY) == {EAST}

    asyncio.run(body())


def test_a_repeated_swap_that_is_already_in_is_success(system):
    async def body():
        zone = provider(system.folder)
        old, east = await zone.read(NAME, "A"), zone.wanted(NAME, "A", "east")
        await zone.swap(old, east, 3)
        serial = (await zone.read(NAME, "A")).serial
        await zone.swap(old, east, 3)
        assert (await zone.read(NAME, "A")).serial == serial

    asyncio.run(body())


def test_two_swaps_at_once_one_wins(system):
    async def body():
        zone = provider(system.folder)
        old = await zone.read(NAME, "A")
        results = await asyncio.gather(
            *(zone.swap(old, RRset(NAME, "A", 2, (f"127.0.7.{100 + n}",)), n) for n in range(1, 9)),
            return_exceptions=True,
        )
        won = [n for n, r in enumerate(results, 1) if r is None]
        assert len(won) == 1
        assert all(isinstance(r, LostCompare | LeaseHeld) for r in results if r is not None), results
        assert (await zone.read(NAME, "A")).epoch == won[0]
        assert answer(PRIMARY) == {f"127.0.7.{100 + won[0]}"}

    asyncio.run(body())


def test_records_that_the_server_would_drop_silently_are_refused(system):
    async def body():
        zone = provider(system.folder)
        with pytest.raises(LostCompare, match="CNAME"):
            await zone.swap(await zone.read("alias.venue.test.", "A"), zone.wanted("alias.venue.test.", "A", "east"), 3)
        new = zone.wanted("new.venue.test.", "A", "east")
        await zone.swap(await zone.read("new.venue.test.", "A"), new, 3)
        assert answer(PRIMARY, "new.venue.test.") == {EAST}

    asyncio.run(body())


def test_names_types_and_empty_sets_outside_the_settings(system):
    async def body():
        zone = provider(system.folder)
        old = await zone.read(NAME, "A")
        with pytest.raises(BadInput, match="without a record"):
            await zone.swap(old, RRset(NAME, "A", 2, ()), 3)
        with pytest.raises(BadInput, match="not among the names"):
            await zone.swap(old, RRset("ns1.venue.test.", "A", 2, (EAST,)), 3)
        for rdtype in ("NS", "SOA", "AAAA", "TXT"):
            with pytest.raises(BadInput, match="may not be changed for type"):
                await zone.swap(old, RRset(NAME, rdtype, 2, ("x.",)), 3)
        with pytest.raises(BadInput, match="no values for site"):
            zone.wanted(NAME, "A", "north")

    asyncio.run(body())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"key_secret": "file:{folder}/other"}, "BADSIG"),
        ({"key_name": "unknown."}, "BADKEY"),
        ({"key_algorithm": "hmac-sha512"}, "BADKEY"),
        ({"zone": "other.test.", "names": {"app.other.test.": {"ttl": 2, "A": {"east": [EAST]}}}}, "REFUSED|NOTAUTH"),
    ],
)
def test_refusals_say_what_to_check(system, changes, says):
    async def body():
        changed = {k: v.format(folder=system.folder) if isinstance(v, str) else v for k, v in changes.items()}
        zone = provider(system.folder, **changed)
        name = next(iter(changed["names"])) if "names" in changed else NAME
        with pytest.raises(Rejected, match=says) as caught:
            await zone.read(name, "A")
        assert "check" in str(caught.value).lower()
        with pytest.raises(Rejected, match=says):
            await zone.swap(Owned(RRset(name, "A", 2, (WEST,)), None, 10), RRset(name, "A", 2, (EAST,)), 3)
        with pytest.raises(Rejected, match=says):
            await zone.check_access(name, "A")
        assert SECRETS["other"] not in str(caught.value)

    asyncio.run(body())
    assert answer(PRIMARY) == {WEST}


def test_a_key_that_may_not_update_is_found_before_it_is_needed(system):
    async def body():
        zone = provider(system.folder, key_name="readonly.")
        old = await zone.read(NAME, "A")  # it may read
        with pytest.raises(Rejected, match="update-policy"):
            await zone.check_access(NAME, "A")
        with pytest.raises(Rejected, match="update-policy"):
            await zone.swap(old, zone.wanted(NAME, "A", "east"), 3)
        with pytest.raises(Rejected, match="update-policy"):  # the right key, a name that it has no grant for
            await provider(system.folder).check_access("locked.venue.test.", "A")

    asyncio.run(body())


def test_check_access_changes_nothing(system):
    async def body():
        zone = provider(system.folder)
        access = await zone.check_access(NAME, "A")
        assert (access.mname, access.serial, access.warnings) == ("ns1.venue.test.", 10, ())
        assert abs(access.skew_s) < 30
        assert (await zone.read(NAME, "A")) == Owned(RRset(NAME, "A", 2, (WEST,)), None, 10)
        weak = await provider(system.folder, key_name="sha1-key.", key_algorithm="hmac-sha1").check_access(NAME, "A")
        assert "weak" in weak.warnings[0]

    asyncio.run(body())


def test_primary_gone_and_primary_hung(system):
    async def body():
        zone, quick = provider(system.folder), provider(system.folder, timeout="300ms")
        old, east = await zone.read(NAME, "A"), zone.wanted(NAME, "A", "east")
        hang(system.processes["primary"].pid)
        with pytest.raises(Unreachable, match=r"no answer within 0\.3 s"):
            await quick.read(NAME, "A")
        with pytest.raises(EffectUnknown):  # it may still be applied when the server goes on
            await quick.swap(old, east, 3)
        os.kill(system.processes["primary"].pid, signal.SIGCONT)
        until(lambda: answer(PRIMARY) == {EAST}, what="the late update")
        await zone.swap(old, east, 3)  # and the retry finds its own earlier effect
        await asyncio.to_thread(system.stop, "primary")
        with pytest.raises(Unreachable, match="Is it running"):
            await zone.read(NAME, "A")
        with pytest.raises(Unreachable):
            await zone.swap(old, east, 3)
        gone = await quick.ask(address(PRIMARY), NAME, "A")
        assert gone.rrset is None
        assert "no answer" in gone.error

    asyncio.run(body())


def test_a_lost_reply_is_settled_by_looking(system):
    """A proxy that delivers the update and cuts the connection before the answer."""

    async def body():
        cut = True

        async def relay(reader, writer):
            up_reader, up_writer = await asyncio.open_connection(*PRIMARY)
            try:
                while head := await reader.read(2):
                    message = await reader.readexactly(int.from_bytes(head, "big"))
                    up_writer.write(head + message)
                    size = await up_reader.readexactly(2)
                    reply = await up_reader.readexactly(int.from_bytes(size, "big"))
                    if cut and message[2] >> 3 & 15 == 5:  # opcode UPDATE
                        return
                    writer.write(size + reply)
            finally:
                writer.close()
                up_writer.close()

        async with await asyncio.start_server(relay, *DEAF):
            zone = provider(system.folder, primary=address(DEAF))
            old, east = await zone.read(NAME, "A"), zone.wanted(NAME, "A", "east")
            await zone.swap(old, east, 3)
            assert answer(PRIMARY) == {EAST}
            with pytest.raises(EffectUnknown):  # nothing of ours is in: it may be under way
                await zone.swap(Owned(RRset(NAME, "A", 2, ("127.0.7.77",)), 3, 1), zone.wanted(NAME, "A", "west"), 3)

    asyncio.run(body())


def test_point_verify_and_back(system):
    async def body():
        zone = provider(system.folder)
        by_hand(lambda u: u.replace(NAME, 5, "A", WEST))
        assert answer(RESOLVER) == {WEST}  # now cached there for 5 s, time enough for what comes before it is asked
        step, guarded = point(), []
        ctx = context(zone, guard=lambda: guarded.append(answer(PRIMARY)))
        before = await step.observe(ctx)
        assert not before.holds
        assert before.changes == (f"{NAME} A: 5 {WEST} -> 2 {EAST}",)
        assert before.facts["inverse"] == [f"update delete {NAME} A", f"update add {NAME} 5 A {WEST}"]
        async with await service():
            facts = {**before.facts, **await step.apply(ctx, before)}
        assert guarded == [{WEST}], "the guard comes before the change"
        confirmed = await step.confirm(ctx)
        assert confirmed.holds
        assert set(confirmed.facts["servers"]) == {address(PRIMARY), address(SECONDARY)}
        assert (await step.observe(ctx)).holds

        check = actions.Verify.model_validate({"name": NAME, "site": "target", "within": "60s", "slack": "500ms"})
        earlier = (Done("dns", "zones.point", "done", facts),)
        early = await check.observe(context(zone, earlier=earlier))
        assert not early.holds
        assert "still answers" in early.summary
        assert "expected for" in early.summary
        times = await check.apply(context(zone, earlier=earlier), early)
        assert times["authoritative_s"] < 5
        assert times["resolvers_s"] >= times["authoritative_s"]
        assert times["ttl_deadline_s"] == 5.5
        written = datetime.fromisoformat(facts["written_at"])
        assert datetime.now(UTC) >= written + timedelta(seconds=5.4), "the old TTL was waited out"
        assert answer(RESOLVER) == {EAST}
        again = await check.confirm(context(zone, earlier=earlier))
        assert again.holds
        assert "authoritative_s" not in again.facts, "what was measured first stays"
        # A name that this run did not change has no TTL to wait for.
        idle = (Done("dns", "zones.point", "already", {**before.facts}),)
        assert (await check.observe(context(zone, earlier=idle))).holds
        # Killed between the write and its record: the whole TTL counts, from now.
        lost = (Done("dns", "zones.point", "done", {**before.facts}),)
        assert "may keep the old one" in (await check.observe(context(zone, earlier=lost))).summary

        with pytest.raises(UnhealthyTarget):  # nothing listens in west
            await step.undo(ctx, facts)
        assert answer(PRIMARY) == {EAST}
        async with await service(WEST):
            await step.undo(ctx, facts)
            await step.undo(ctx, facts)
        assert answer(PRIMARY) == {WEST}

    asyncio.run(body())


def test_point_refuses_a_target_that_does_not_answer(system):
    async def body():
        zone = provider(system.folder)
        step = point()
        ctx = context(zone, guard=lambda: pytest.fail("nothing may be changed"))
        with pytest.raises(UnhealthyTarget, match=EAST):
            await step.apply(ctx, await step.observe(ctx))
        assert answer(PRIMARY) == {WEST}

    asyncio.run(body())


def test_point_refuses_names_of_other_controllers_and_aliases(system):
    async def body():
        zone = provider(system.folder)
        with pytest.raises(SafetyRefusal, match="external-dns"):
            await point(name="foreign.venue.test").observe(context(zone))
        with pytest.raises(SafetyRefusal, match="CNAME"):
            await point(name="alias.venue.test").observe(context(zone))
        by_hand(lambda u: u.add(NAME, 2, "AAAA", "::1"))
        assert any("AAAA" in w for w in (await point().observe(context(zone))).facts["warnings"])

    asyncio.run(body())


def test_confirm_names_the_server_that_lags(system):
    async def body():
        zone, quick = provider(system.folder), provider(system.folder, timeout="300ms")
        step = point()
        hang(system.processes["secondary"].pid)
        ctx = context(zone)
        async with await service():
            facts = await step.apply(ctx, await step.observe(ctx))
        with pytest.raises(NotYet, match=address(SECONDARY)):
            await step.confirm(context(quick, left_s=1))
        slow = provider(system.folder, timeout="1s")  # the secondary takes it all, the primary answers well before
        assert (await point(may_be_gone=True).confirm(context(slow, left_s=10))).holds
        os.kill(system.processes["secondary"].pid, signal.SIGCONT)
        assert (await step.confirm(context(zone))).facts["servers"][address(SECONDARY)]["serial"] == facts["serial"]

    asyncio.run(body())


def test_verify_finds_the_resolver_that_keeps_the_old_answer(system):
    async def body():
        zone = provider(system.folder)
        by_hand(lambda u: u.replace(NAME, 60, "A", WEST))
        assert answer(RESOLVER) == {WEST}  # cached for 60 s although the journal says the TTL was 1
        wanted = zone.wanted(NAME, "A", "east")
        await zone.swap(await zone.read(NAME, "A"), wanted, 1)
        facts = {"name": NAME, "rdtype": "A", "written_at": datetime.now(UTC).isoformat(), "serial": 12, "old_ttl_s": 1}
        check = actions.Verify.model_validate({"name": NAME, "site": "east", "within": "2s", "slack": "100ms"})
        ctx = context(zone, earlier=(Done("dns", "zones.point", "done", facts),))
        with pytest.raises(NotYet, match=rf"{address(RESOLVER)}.*for \d\d s more.*past the old TTL"):
            await check.apply(ctx, await check.observe(ctx))

    asyncio.run(body())


def test_ready(system):
    async def body():
        check = actions.Ready.model_validate({"name": NAME})
        zone = provider(system.folder, timeout="2s")
        found = await check.observe(context(zone))
        assert found.holds, found.summary
        await check.apply(context(zone), found)
        await asyncio.to_thread(system.stop, "secondary")
        found = await check.observe(context(zone))
        assert not found.holds
        assert address(SECONDARY) in found.summary

    asyncio.run(body())
