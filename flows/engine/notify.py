"""Has people told, by a process of its own that follows the journal: what hangs there, hangs nothing here.

``follow`` tells of a run from its start to its end; ``alert`` of something that has no run. Both return at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from flows.engine.providers import Components
from tasks.people.protocol import Directory

FILE = "notifications.jsonl"
"""In the run's folder (or, for what has no run, in the state folder): what was sent where, and what came of it."""
COMMAND = [sys.executable, "-P", "-c", "from flows import notifier; notifier.main()"]
SPAWN_S = 1.0
"""How long a run that has ended waits for the process to have been started."""

_children: list[subprocess.Popen[bytes]] = []


def follow(folder: Path, components: Components) -> threading.Thread | None:
    """Tell people of the run in ``folder``; None where nobody wants to be told. The thread ends once that began."""
    if not any(d.subscriptions() for _, d in components.of(Directory)):
        return None
    return _start([str(folder)], b"")


def alert(system: str | Path, title: str, text: str) -> threading.Thread:
    """Tell those of ``system`` (a name, a folder or a file) who want ``alert`` of something that has no run.

    For what waits for a person, and for signals that disagree. Never raises and never waits; what became of it is in
    the state folder's ``notifications.jsonl``. The thread ends once that began: a process that ends may wait for it.
    """
    said = {"system": str(system), "title": title, "text": text}
    return _start([], json.dumps(said).encode())


def _start(words: list[str], said: bytes) -> threading.Thread:
    thread = threading.Thread(target=_spawn, args=(words, said), name="relight-notify", daemon=True)
    thread.start()
    return thread


def _spawn(words: list[str], said: bytes) -> None:
    _children[:] = [c for c in _children if c.poll() is None]
    try:
        # a session of its own: a signal to the run's group must not keep the last word from being sent
        child = subprocess.Popen(
            [*COMMAND, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _children.append(child)
        if child.stdin is not None:
            child.stdin.write(said)
            child.stdin.close()
    except OSError:
        return  # no process could be started: the run goes on without


def sent(folder: Path) -> list[dict[str, Any]]:
    """What was sent, oldest first: ``at``, ``seq``, ``event``, ``to`` (a reference), ``ok``, ``why``."""
    try:
        lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return []
