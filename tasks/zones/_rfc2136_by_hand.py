"""A dynamic update as a person gives it: nsupdate(1), which signs and checks what stood there (RFC 2136, 2.4)."""

from __future__ import annotations

from tasks.manual import secret
from tasks.zones._rfc2136_settings import ZoneSettings
from tasks.zones._wire import Primary
from tasks.zones.protocol import RRset


class ByHand:
    """Fulfils ``tasks.zones.manual.ByHand``."""

    _settings: ZoneSettings
    _primary: Primary

    def change_line(self, old: RRset | None, new: RRset) -> str:
        """See ``tasks.zones.manual.ByHand``. The key goes in by standard input, never as an argument."""
        s, host_port = self._settings, self._primary.address
        host, _, port = host_port.rpartition(":")
        lines = [f"server {host.strip('[]')} {port}", f"zone {s.zone}"]
        lines.append(f"key {s.key_algorithm}:{s.key_name} {secret(s.key_secret)}")
        if old is None:
            lines.append(f"prereq nxrrset {new.name} {new.rdtype}")
        else:
            lines += [f"prereq yxrrset {old.name} {old.rdtype} {value}" for value in old.values]
        lines.append(f"update delete {new.name} {new.rdtype}")
        lines += [f"update add {new.name} {new.ttl} {new.rdtype} {value}" for value in new.values]
        return "nsupdate <<RELIGHT\n" + "\n".join([*lines, "send"]) + "\nRELIGHT"
