"""Name servers: BIND 9 primary and secondary for the zone, and unbound as a caching resolver in front of them."""

from __future__ import annotations

from functools import partial

import binaries
import probes
from layout import ZONE, Part, fresh, net, secret, write

# BIND 9.18 ARM, chapter 8. It listens only on addresses that an interface has, and of 127.0.0.0/8 lo has only
# 127.0.0.1 unless root adds more: hence two ports there, and no addresses of their own. rndc is off (`controls {}`),
# and nothing is written outside the own folder.
NAMED = """\
options {{
    directory "{place}";
    listen-on port {port} {{ 127.0.0.1; }};
    listen-on-v6 {{ none; }};
    pid-file none;
    lock-file none;
    session-keyfile none;
    recursion no;
    dnssec-validation no;
    minimal-responses yes;
    allow-query {{ 127.0.0.0/8; }};
    allow-transfer {{ key "{key}"; }};
    ixfr-from-differences no;
    serial-query-rate 100;
    {more}
}};
controls {{ }};
logging {{
    channel own {{ stderr; print-time iso8601; print-category yes; severity info; }};
    category default {{ own; }};
    category lame-servers {{ null; }};
}};
include "{place}/key.conf";
"""

PRIMARY = """\
zone "venue.test" {
    type primary;
    file "zone";
    notify explicit;
    also-notify { 127.0.0.1 port 5332 key "relight-lab."; };
    notify-delay 0;
    max-journal-size 1m;
    update-policy {
        grant relight-lab. name app.venue.test. A TXT;
        grant relight-lab. name _relight.app.venue.test. TXT;
    };
};
"""

SECONDARY = """\
zone "venue.test" {
    type secondary;
    file "zone";
    primaries { 127.0.0.1 port 5331 key "relight-lab."; };
    masterfile-format text;
    notify no;
    min-refresh-time 1;
    min-retry-time 1;
};
"""

# The last number of the SOA is how long "no such record" may be cached (RFC 2308, 5).
ZONE_FILE = """\
$ORIGIN venue.test.
$TTL 5
@            IN SOA ns1 hostmaster 1 60 5 3600 5
@            IN NS  ns1
@            IN NS  ns2
ns1          IN A   127.0.0.1
ns2          IN A   127.0.0.1
app          IN A   127.0.1.10
west         IN A   127.0.1.10
east         IN A   127.0.2.10
_relight.app IN TXT "epoch=0 owner=relight"
"""

# unbound.conf(5). "test." is answered NXDOMAIN by default (RFC 6761), hence nodefault.
UNBOUND = """\
server:
    interface: 127.0.3.55@5300
    outgoing-interface: 127.0.0.1
    do-ip6: no
    do-daemonize: no
    do-not-query-localhost: no
    access-control: 127.0.0.0/8 allow
    chroot: ""
    username: ""
    pidfile: ""
    directory: "{place}"
    use-syslog: no
    verbosity: 1
    num-threads: 1
    module-config: "iterator"
    local-zone: "test." nodefault
    cache-min-ttl: 0
    cache-max-negative-ttl: 5
    infra-keep-probing: yes
    infra-host-ttl: 5
remote-control:
    control-enable: no
forward-zone:
    name: "venue.test."
    forward-addr: 127.0.0.1@5331
    forward-addr: 127.0.0.1@5332
"""


def parts() -> list[Part]:
    """ns1, ns2 and the resolver."""
    return [
        _named("ns1", 5331, PRIMARY, ZONE_FILE),
        _named("ns2", 5332, SECONDARY, None),
        _unbound(),
    ]


def _named(name: str, port: int, zone: str, records: str | None) -> Part:
    place = fresh("ops", name)
    address = f"127.0.0.1:{port}"
    key = 'key "relight-lab." {{ algorithm hmac-sha256; secret "{}"; }};\n'
    write(place / "key.conf", key.format(secret("tsig")), 0o600)
    more = "notify-rate 100;" if records else ""
    write(place / "named.conf", NAMED.format(place=place, port=port, key="relight-lab.", more=more) + zone)
    if records:
        write(place / "zone", records)
    return Part(
        name=name,
        site="ops",
        argv=(binaries.find("named"), "-f", "-n", "1", "-c", str(place / "named.conf")),
        listens=(address, f"udp:{address}"),
        ready=partial(probes.dns_answer, address, ZONE, "NS", f"ns1.{ZONE}"),
        cwd=place,
        # a secondary whose first transfer is refused tries again after a minute, and a NOTIFY meanwhile only queues
        after="" if records else "ns1",
    )


def _unbound() -> Part:
    place = fresh("ops", "unbound")
    address = f"{net('ops')}.55"
    write(place / "unbound.conf", UNBOUND.format(place=place))
    return Part(
        name="unbound",
        site="ops",
        argv=(binaries.find("unbound"), "-d", "-c", str(place / "unbound.conf")),
        listens=(f"{address}:5300", f"udp:{address}:5300"),
        ready=partial(probes.dns_answer, f"{address}:5300", ZONE, "NS", f"ns1.{ZONE}"),
        cwd=place,
    )
