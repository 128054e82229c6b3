"""A change of a distribution as a person gives it: by the AWS CLI, with the ETag that was read."""

from __future__ import annotations

import copy
import json
from typing import Any

from tasks.cdn._pointers import Pointers
from tasks.manual import Command, NoManual, aws


class Lines:
    """Fulfils ``tasks.cdn.manual.ByHand``."""

    _settings: Any
    _pointers: Pointers

    async def switch_lines(self, site: str) -> list[Command | NoManual]:
        """The whole configuration is sent (UpdateDistribution), so it stands in the command."""
        answer = await self._distribution()
        config = copy.deepcopy(answer["Distribution"]["DistributionConfig"])
        self._pointers.point(config, self._origin(site).id)
        words = ["update-distribution", "--id", self._settings.distribution, "--if-match", answer["ETag"]]
        words += ["--distribution-config", json.dumps(config), "--query", "Distribution.Status"]
        why = f"The edges fetch from {site}; refused (PreconditionFailed) where it was changed since the export."
        return [Command(self._line(*words), "InProgress", why)]

    def invalidate_line(self, paths: tuple[str, ...]) -> str:
        words = ("create-invalidation", "--distribution-id", self._settings.distribution, "--paths", *paths)
        return self._line(*words, "--query", "Invalidation.Status")

    def _line(self, *words: str) -> str:
        return aws("us-east-1", self._settings.profile, "cloudfront", *words, "--output", "text")

    async def _distribution(self) -> dict[str, Any]:
        raise NotImplementedError

    def _origin(self, site: str) -> Any:
        raise NotImplementedError
