"""Migration files, what is pending, and which statements are suspicious: all of it without a server."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tasks.errors import BadInput
from tasks.migrations._files import read
from tasks.migrations._risks import suspicions
from tasks.migrations.actions import Apply, pending
from tasks.migrations.protocol import Applied


def folder(tmp_path, **files):
    for name, text in files.items():
        (tmp_path / f"{name.replace('__', '.')}.sql").write_text(text)
    return read(tmp_path)


def done(file, **more):
    values = {"title": file.title, "sha256": file.sha256, "state": "applied", "run": "r", "at": "now", **more}
    return Applied(file.number, file.phase, **values)


@pytest.mark.parametrize(
    ("statement", "rules"),
    [
        ("ALTER TABLE t ALTER COLUMN c TYPE bigint", ["change-type"]),
        ("alter table only s.t alter c set data type text using c::text", ["change-type"]),
        ("ALTER TABLE t ADD COLUMN c uuid DEFAULT gen_random_uuid()", ["volatile-default"]),
        ("ALTER TABLE t ADD c text DEFAULT 'now()'", []),
        ("ALTER TABLE t ADD COLUMN c bigserial", ["generated-column"]),
        ("ALTER TABLE t ADD COLUMN c int GENERATED ALWAYS AS (n * 2) STORED", ["generated-column"]),
        ("ALTER TABLE t ALTER COLUMN c SET NOT NULL", ["set-not-null"]),
        ("ALTER TABLE t ADD CONSTRAINT k CHECK (c > 0)", ["constraint-without-not-valid"]),
        ("ALTER TABLE t ADD CONSTRAINT k CHECK (c > 0) NOT VALID", []),
        ("ALTER TABLE t ADD CONSTRAINT k UNIQUE (c)", ["constraint-builds-index"]),
        ("ALTER TABLE t ADD CONSTRAINT k UNIQUE USING INDEX i", []),
        ("CREATE UNIQUE INDEX i ON t (c)", ["index-without-concurrently"]),
        ("CREATE INDEX CONCURRENTLY i ON t (c)", []),
        ("/* CREATE INDEX i ON t (c) */ SELECT 'LOCK t'", []),
        ("LOCK TABLE t", ["lock-table"]),
        ("REFRESH MATERIALIZED VIEW v", ["rewrite"]),
    ],
)
def test_what_makes_clients_wait_is_known_by_name(statement, rules):
    assert [s.rule.name for s in suspicions(statement)] == rules
    assert all(s.rule.source for s in suspicions(statement))


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"1_a__expand": "SELECT 1"}, "expected NNNN_name"),
        ({"0001_a__expand": "SELECT 1", "0001_b__expand": "SELECT 1"}, "next free one"),
        ({"0001_a__expand": "-- nothing"}, "no statement"),
        ({"0001_a__expand": "BEGIN; SELECT 1; COMMIT"}, "'BEGIN'"),
        ({"0001_a__expand": "SET lock_timeout = 0; SELECT 1"}, "'SET'"),
        ({"0001_a__expand": "SELECT 1; CREATE INDEX CONCURRENTLY i ON t (c)"}, "a file of its own"),
        ({"0001_a__expand": "ALTER TABLE t DROP COLUMN c"}, "belongs in 0001_a.contract.sql"),
        ({"0001_a__expand": "ALTER TABLE t DROP c"}, "belongs in 0001_a.contract.sql"),
        ({"0001_a__expand": "ALTER TABLE t RENAME TO u"}, "belongs in 0001_a.contract.sql"),
        ({"0001_a__expand__down": "SELECT 1"}, "no expand file"),
    ],
)
def test_a_file_that_breaks_the_frame_is_refused_when_it_is_read(tmp_path, files, why):
    with pytest.raises(BadInput, match=why):
        folder(tmp_path, **files)


def test_files_come_in_order_with_what_they_accept_and_their_way_back(tmp_path):
    (tmp_path / "0010_b.expand.sql").write_text("-- relight: accept rewrite: at night\nSELECT ';'; SELECT 2;")
    first, second = folder(tmp_path, **{"0002_a__expand": "SELECT 1", "0002_a__expand__down": "SELECT 0"})
    assert (first.name, first.down) == ("0002_a.expand.sql", ("SELECT 0",))
    assert (len(second.statements), second.accepted, second.down) == (2, {"rewrite": "at night"}, None)


def test_what_is_pending_fits_the_record_or_is_an_error(tmp_path):
    a, b, c = folder(
        tmp_path, **{"0001_a__expand": "SELECT 1", "0002_b__expand": "SELECT 2", "0002_b__contract": "SELECT 3"}
    )[:3]
    files = (a, c, b) if c.phase == "expand" else (a, b, c)
    expand = [f for f in files if f.phase == "expand"]
    contract = next(f for f in files if f.phase == "contract")
    assert list(pending(files, (), "expand")) == expand
    assert list(pending(files, (done(expand[0]), done(expand[1], state="begun")), "expand")) == [expand[1]]
    with pytest.raises(BadInput, match=r"0002_b\.expand\.sql, which is not applied"):
        pending(files, (done(expand[0]),), "contract")
    assert pending(files, tuple(map(done, expand)), "contract") == (contract,)
    with pytest.raises(BadInput, match="was changed after it was applied"):
        pending(files, (done(expand[0], sha256="0" * 64),), "expand")
    with pytest.raises(BadInput, match="number above 0002"):
        pending(files, (done(expand[1]),), "expand")
    with pytest.raises(BadInput, match="its file is gone"):
        pending(files[1:], (done(files[0]),), "expand")


def test_a_contract_says_which_release_it_waits_for():
    with pytest.raises(ValidationError, match="needs release"):
        Apply(phase="contract")
    assert Apply(phase="contract", old_releases="allow").name == "migrations.apply"
