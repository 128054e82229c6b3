"""Object storage: an S3 server in each site, and in each site a copier that fills its bucket from the other's."""

from __future__ import annotations

import sys

import binaries
import probes
import registry
from layout import DATABASE, HERE, SITES, NotReady, Part, net, other

SOURCE = {"west": "", "east": "west"}
"""What a site's bucket is copied from at first; afterwards the tag ``relight-source`` of the bucket says so."""


def parts() -> list[Part]:
    """Moto server and copier, in each site."""
    return [make(site) for site in SITES for make in (_server, _copier)]


def _server(site: str) -> Part:
    address = f"{net(site)}.80"

    async def ready() -> None:
        await probes.http_ok(f"{address}:9000", "/", b"ListAllMyBucketsResult")

    return Part(
        name=f"{site}-s3",
        site=site,
        argv=(binaries.find("moto_server"), "-H", address, "-p", "9000"),
        listens=(f"{address}:9000",),
        ready=ready,
    )


def _copier(site: str) -> Part:
    remote = other(site)

    async def ready() -> None:
        status, body = await probes.http(f"{net(site)}.80:9000", f"/{DATABASE}-{site}?tagging")
        found = status == 200 if SOURCE[site] else status in (200, 404) and b"NoSuchBucket" not in body
        if not found:
            raise NotReady(f"bucket {DATABASE}-{site}: status {status} for its tags")

    return Part(
        name=f"{site}-copier",
        site=site,
        argv=(
            *(sys.executable, str(HERE / "copier.py")),
            *("--site", site, "--endpoint", f"http://{net(site)}.80:9000", "--bucket", f"{DATABASE}-{site}"),
            *("--from", f"{remote}=http://{net(site)}.180:9000/{DATABASE}-{remote}"),
            *("--rclone", binaries.find("rclone"), "--first-source", SOURCE[site]),
        ),
        listens=(),
        ready=ready,
        env={
            "S3_ACCESS_KEY_FILE": str(registry.home() / "secrets" / "s3_access"),
            "S3_SECRET_KEY_FILE": str(registry.home() / "secrets" / "s3_secret"),
            "AWS_EC2_METADATA_DISABLED": "true",
        },
    )
