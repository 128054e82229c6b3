"""Statements that make clients of a big table wait. Pure: text in, suspicions out; the server settles them.

A short list; what it does not know is found by the rehearsal, which measures locks and rewrites. Source of each:
the PostgreSQL 15 manual, part VI *SQL Commands*, and 13.3.1 *Table-Level Locks*.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tasks.migrations._files import bare

IDENT = r'(?:"[^"]+"|[\w$]+)(?:\.(?:"[^"]+"|[\w$]+))?'
ALTERED = re.compile(rf"\bALTER TABLE (?:IF EXISTS )?(?:ONLY )?({IDENT})", re.IGNORECASE)
NEW_COLUMN = r"\bADD (?:COLUMN )?(?!CONSTRAINT\b|CHECK\b|UNIQUE\b|PRIMARY\b|FOREIGN\b|EXCLUDE\b)"


@dataclass(frozen=True)
class Rule:
    """``what`` it does, in the words of the manual's page ``source``."""

    name: str
    pattern: re.Pattern[str]
    what: str
    source: str


def _rule(name: str, pattern: str, what: str, source: str) -> Rule:
    return Rule(name, re.compile(pattern, re.IGNORECASE), what, source)


RULES = (
    _rule(
        "change-type",
        r"\bALTER (?:COLUMN )?\S+ (?:SET DATA )?TYPE\b",
        "the table and its indexes are rewritten under ACCESS EXCLUSIVE: nobody reads or writes meanwhile",
        "ALTER TABLE, Notes",
    ),
    _rule(
        "generated-column",
        NEW_COLUMN + r".*(?:\bGENERATED\b|\b(?:small|big)?serial\b)",
        "every row gets a value of its own, so the table is rewritten under ACCESS EXCLUSIVE",
        "ALTER TABLE, Notes",
    ),
    _rule(
        "volatile-default",
        NEW_COLUMN + r".*\bDEFAULT\b",
        "a volatile default is computed for every row: the table is rewritten under ACCESS EXCLUSIVE",
        "ALTER TABLE, Notes",
    ),
    _rule(
        "set-not-null",
        r"\bALTER (?:COLUMN )?(?P<column>\S+) SET NOT NULL\b",
        "the whole table is scanned under ACCESS EXCLUSIVE unless a valid CHECK (column IS NOT NULL) proves it",
        "ALTER TABLE, SET/DROP NOT NULL",
    ),
    _rule(
        "constraint-without-not-valid",
        r"\bADD (?:CONSTRAINT \S+ )?(?:CHECK|FOREIGN KEY)\b(?!.*\bNOT VALID\b)",
        "every row is checked under the lock; add it NOT VALID, then VALIDATE CONSTRAINT in a later file",
        "ALTER TABLE, ADD table_constraint [NOT VALID]",
    ),
    _rule(
        "constraint-builds-index",
        r"\bADD (?:CONSTRAINT \S+ )?(?:UNIQUE|PRIMARY KEY|EXCLUDE)\b(?!.*\bUSING INDEX\b)",
        "its index is built under ACCESS EXCLUSIVE; build it CONCURRENTLY, then ADD CONSTRAINT … USING INDEX",
        "ALTER TABLE, ADD table_constraint_using_index",
    ),
    _rule(
        "moved",
        r"\bSET (?:TABLESPACE|LOGGED|UNLOGGED|ACCESS METHOD)\b",
        "all of its data is written again under ACCESS EXCLUSIVE",
        "ALTER TABLE, SET TABLESPACE / LOGGED",
    ),
)
"""Of ALTER TABLE."""
OTHERS = (
    _rule(
        "index-without-concurrently",
        rf"^CREATE (?:UNIQUE )?INDEX (?!CONCURRENTLY\b).*?\bON (?:ONLY )?(?P<table>{IDENT})",
        "writes wait until it is built (SHARE lock); CREATE INDEX CONCURRENTLY in a file of its own does not",
        "CREATE INDEX, Building Indexes Concurrently",
    ),
    _rule(
        "rewrite",
        rf"^(?:CLUSTER(?: VERBOSE)?|REINDEX (?:\([^)]*\) )?TABLE|REFRESH MATERIALIZED VIEW(?! CONCURRENTLY)) "
        rf"(?P<table>{IDENT})",
        "it is written again, and nobody may use it meanwhile",
        "CLUSTER; REINDEX; REFRESH MATERIALIZED VIEW",
    ),
    _rule(
        "lock-table",
        rf"^LOCK (?:TABLE )?(?:ONLY )?(?P<table>{IDENT})",
        "the lock is kept until the file has ended",
        "LOCK",
    ),
)


@dataclass(frozen=True)
class Suspicion:
    """``functions`` (of a default) and ``column`` (to be NOT NULL) are for the server to settle."""

    rule: Rule
    table: str
    functions: tuple[str, ...] = ()
    column: str = ""


def suspicions(statement: str) -> tuple[Suspicion, ...]:
    """What may be amiss with one statement."""
    text, found = bare(statement), []
    if altered := ALTERED.search(text):
        for rule in RULES:
            for match in rule.pattern.finditer(text):
                functions: tuple[str, ...] = ()
                if rule.name == "volatile-default":
                    functions = tuple(re.findall(r"([A-Za-z_][\w$]*)\s*\(", text))
                    if not functions:
                        continue  # a constant, since PostgreSQL 11 only noted in the catalog
                column = match.groupdict().get("column", "")
                found.append(Suspicion(rule, altered[1], functions, column.strip('"')))
    found += [Suspicion(rule, m["table"]) for rule in OTHERS if (m := rule.pattern.search(text))]
    return tuple(found)
