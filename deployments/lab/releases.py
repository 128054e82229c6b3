"""Releases of the application: one folder each, and the symbolic link of each site to the one that its servers run.

``$RELIGHT_LAB/releases/VERSION`` is a copy of the shipped application that says its version; the link is
``$RELIGHT_LAB/SITE/app/current``. A broken release is for rehearsals of an update that must go back by itself.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import registry
from layout import HERE, folder, write

FIRST = "1"
"""The release that ``up`` starts."""
NEXT = "2"
"""One more that is there, to be updated to."""

_VERSION = re.compile(r"\w[\w.-]{0,39}", re.ASCII)
_READY, _WRITE = "await database.answers();", "const { n, client, payload } = await event(request);"
BROKEN = {
    "unready": (_READY, "throw new Error('broken: this release never gets ready');"),
    "errors": (_WRITE, _WRITE + "\n      if (n % 2) throw new Error('broken: this release fails every second write');"),
    "flaky": (
        _WRITE,
        _WRITE
        + "\n      metrics.writes = (metrics.writes || 0) + 1;"
        + "\n      if (metrics.writes % 50 === 0) throw new Error('broken: this release fails 2 % of the writes');",
    ),
    # every write waits a little: below all thresholds, and much more than with the release before
    "sluggish": (_WRITE, _WRITE + "\n      await new Promise((resolve) => { setTimeout(resolve, 250); });"),
    # from the moment on at which there is a file SLOW beside it: so a rehearsal says when
    "late": (
        _WRITE,
        _WRITE
        + "\n      if (require('node:fs').existsSync(`${__dirname}/SLOW`))"
        + " await new Promise((resolve) => { setTimeout(resolve, 1200); });",
    ),
    # as with a leak: what no check of a fresh server finds, and real load does within a second
    "slow": (
        _WRITE,
        _WRITE
        + "\n      metrics.writes = (metrics.writes || 0) + 1;"
        + "\n      if (metrics.writes > 30) await new Promise((resolve) => { setTimeout(resolve, 1200); });",
    ),
}
"""What is wrong -> (line of server.js, what stands there instead)."""


def make(version: str, broken: str | None = None) -> Path:
    """Write the folder of a release, whole or not at all. Raises LabError for a version that is no plain word."""
    if not _VERSION.fullmatch(version):
        raise registry.LabError(f"release {version!r}: expected letters, digits and _.- only, at most 40")
    app = HERE / "app"
    if not (app / "node_modules").is_dir():
        raise registry.LabError(f"{app}/node_modules is missing: run `make lab` or `npm ci` there")
    place = folder("releases") / version
    part = folder("releases", f".{version}.part", mode=0o755)
    for one in (*app.glob("*.js"), app / "package.json"):
        shutil.copyfile(one, part / one.name)
    if broken is not None:
        _break(part / "server.js", broken)
    write(part / "RELEASE", version + "\n")
    (part / "node_modules").unlink(missing_ok=True)
    (part / "node_modules").symlink_to(app / "node_modules")
    if place.exists():
        shutil.rmtree(place)
    part.rename(place)
    return place


def _break(server: Path, how: str) -> None:
    line, instead = BROKEN[how]
    text = server.read_text(encoding="utf-8")
    if text.count(line) != 1:
        raise registry.LabError(f"{server}: expected `{line}` once, found it {text.count(line)} times; see releases.py")
    server.write_text(text.replace(line, instead), encoding="utf-8")


def link(site: str) -> Path:
    """The site's link, pointing to the first release, made anew; the next one is there too. Returns the link."""
    release, current = make(FIRST), folder(site, "app") / "current"
    if not (folder("releases") / NEXT).exists():
        make(NEXT)
    shutil.copyfile(HERE / "locustfile.py", registry.home() / "locustfile.py")
    part = current.with_name("current.part")
    part.unlink(missing_ok=True)
    part.symlink_to(os.path.relpath(release, current.parent))
    part.replace(current)
    return current
