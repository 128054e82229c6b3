"""A change of Route 53 as a person gives it: one batch by the AWS CLI, refused as a whole where the old is not it."""

from __future__ import annotations

import json

from tasks.manual import aws
from tasks.zones import _routing as routing
from tasks.zones._route53_settings import ZoneSettings
from tasks.zones.protocol import RRset


class ByHand:
    """Fulfils ``tasks.zones.manual.ByHand``."""

    _settings: ZoneSettings

    def change_line(self, old: RRset | None, new: RRset) -> str:
        parts = (old.ttl, old.values) if old else None
        change = json.dumps(routing.batch((new.name, new.rdtype), parts, (new.ttl, new.values)))
        settings = self._settings
        words = ("change-resource-record-sets", "--hosted-zone-id", settings.hosted_zone, "--change-batch", change)
        return aws(settings.region, settings.profile, "route53", *words)
