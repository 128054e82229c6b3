"""The files of a folder: ``0001_source.expand.sql``, ``0001_source.contract.sql``, ``0001_source.expand.down.sql``."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import cast

import sqlparse

from tasks.errors import BadInput
from tasks.migrations.protocol import File, Phase

NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.(expand|contract)(\.down)?\.sql", re.ASCII)
ACCEPT = re.compile(r"^-- relight: accept ([a-z-]+): *(\S.*)$", re.MULTILINE)
OUTSIDE = re.compile(r"\b(CREATE (UNIQUE )?|DROP )INDEX CONCURRENTLY\b", re.IGNORECASE)
CONTROL = re.compile(
    r"(BEGIN|START TRANSACTION|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE TRANSACTION|SET|RESET|DISCARD"
    r"|ALTER SYSTEM|VACUUM|REINDEX [^;]*CONCURRENTLY|CREATE DATABASE|DROP DATABASE|CALL|COPY|LISTEN)\b",
    re.IGNORECASE,
)
"""What would break the frame: a transaction of its own, other time-outs, or what no transaction can hold."""
BREAKS = re.compile(
    r"\bDROP (TABLE|COLUMN|VIEW|MATERIALIZED VIEW|SCHEMA|SEQUENCE|TYPE|FUNCTION|DEFAULT)\b|\bRENAME\b|\bTRUNCATE\b"
    r"|\bDROP (?!INDEX|CONSTRAINT|NOT NULL|EXPRESSION|IDENTITY|TRIGGER)\"?\w+\"?\s*(,|$|CASCADE|RESTRICT)",
    re.IGNORECASE,
)
"""What a release that still runs may not survive: only a contract may do it."""


def read(folder: Path) -> tuple[File, ...]:
    """Every file of ``folder``. Raises BadInput: a strange name, a number twice, a file that breaks the frame."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder; migrations are files there, such as 0001_source.expand.sql")
    texts: dict[tuple[int, str, bool], tuple[str, str]] = {}
    titles: dict[int, str] = {}
    for path in sorted(folder.glob("*.sql")):
        match = NAME.fullmatch(path.name)
        if match is None:
            raise BadInput(f"{path}: expected NNNN_name.expand.sql or NNNN_name.contract.sql, each also with .down")
        number, title = int(match[1]), match[2]
        if titles.setdefault(number, title) != title:
            raise BadInput(
                f"{path}: number {match[1]} is that of {titles[number]!r} already; give it the next free one"
            )
        try:
            texts[number, match[3], bool(match[4])] = (title, path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as e:
            raise BadInput(f"{path} cannot be read: {e}") from None
    for number, phase, down in texts:
        if down and (number, phase, False) not in texts:
            raise BadInput(f"{folder}: {number:04d} has a down file for {phase}, and no {phase} file")
    return tuple(
        _file(number, cast("Phase", phase), title, text, texts.get((number, phase, True)))
        for (number, phase, down), (title, text) in sorted(texts.items())
        if not down
    )


def bare(statement: str) -> str:
    """A statement in one line, without comments, and with its strings emptied: what the rules look at."""
    text = sqlparse.format(statement, strip_comments=True)
    text = re.sub(r"\$(\w*)\$.*?\$\1\$", "''", text, flags=re.DOTALL)
    text = re.sub(r"[eE]?'(?:[^'\\]|''|\\.)*'", "''", text)
    return " ".join(text.split()).removesuffix(";").strip()


def _file(number: int, phase: Phase, title: str, text: str, down: tuple[str, str] | None) -> File:
    name = f"{number:04d}_{title}.{phase}.sql"
    statements, concurrent = _statements(name, text)
    if phase == "expand":
        for statement in statements:
            if found := BREAKS.search(bare(statement)):
                raise BadInput(
                    f"{name}: {found[0].strip()!r} takes away what a release that still runs may use; it belongs in"
                    f" {number:04d}_{title}.contract.sql"
                )
    back = _statements(f"{name} (down)", down[1])[0] if down else None
    digest = hashlib.sha256(text.encode()).hexdigest()
    return File(number, title, phase, digest, statements, concurrent, dict(ACCEPT.findall(text)), back)


def _statements(name: str, text: str) -> tuple[tuple[str, ...], bool]:
    found = tuple(s.rstrip(";") for s in sqlparse.split(text) if bare(s))
    if not found:
        raise BadInput(f"{name} has no statement")
    for statement in found:
        if control := CONTROL.match(bare(statement)):
            raise BadInput(
                f"{name}: {control[0]!r} is not for a migration: each file is one transaction, under time-outs that it"
                " does not set itself"
            )
    outside = [s for s in found if OUTSIDE.search(bare(s))]
    if outside and len(found) > 1:
        raise BadInput(
            f"{name}: what runs CONCURRENTLY runs outside a transaction (PostgreSQL manual, CREATE INDEX), so it has a"
            " file of its own; then nothing is ever half applied"
        )
    return found, bool(outside)
