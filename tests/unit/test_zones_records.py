from pathlib import Path

import dns.message
import dns.rrset
import dns.update
import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from tasks.errors import BadInput, Rejected
from tasks.zones import _records as records
from tasks.zones._probe import _check
from tasks.zones._watch import serial_reached
from tasks.zones.actions import Point, Verify
from tasks.zones.protocol import Owned, RRset
from tasks.zones.rfc2136 import PROVIDER

NAME = "app.venue.test."
SYSTEM = Path(__file__).resolve().parents[2] / "runbooks" / "lab" / "system.yaml"
A = RRset(NAME, "A", 60, ("192.0.2.1", "192.0.2.2"))
NEW = RRset(NAME, "A", 30, ("192.0.2.9",))


def lab():
    component = dict(YAML(typ="safe").load(SYSTEM)["components"]["dns"])
    component.pop("provider")
    return component


def lines(old, new, epoch):
    update = dns.update.UpdateMessage("venue.test.")
    records.fill_swap(update, old, new, epoch)
    return [sorted(str(r) for r in section) for section in (update.prerequisite, update.update)]


def test_update_carries_the_whole_old_state_and_replaces_both():
    before, change = lines(Owned(A, 4, 1), NEW, 5)
    assert before == sorted(
        [
            f"{NAME} 0 IN A 192.0.2.1",
            f"{NAME} 0 IN A 192.0.2.2",
            f"{NAME} NONE CNAME",
            '_relight.app.venue.test. 0 IN TXT "epoch=4 owner=relight"',
        ]
    )
    assert change == sorted(
        [
            f"{NAME} ANY A",
            f"{NAME} 30 IN A 192.0.2.9",
            "_relight.app.venue.test. ANY TXT",
            '_relight.app.venue.test. 30 IN TXT "epoch=5 owner=relight"',
        ]
    )


def test_update_of_what_did_not_exist_says_so():
    before, _ = lines(Owned(None, None, 1), NEW, 1)
    assert before == sorted([f"{NAME} NONE A", f"{NAME} NONE CNAME", "_relight.app.venue.test. NONE TXT"])
    before, _ = lines(Owned(None, None, 1), RRset(NAME, "CNAME", 30, ("x.test.",)), 1)
    assert f"{NAME} NONE ANY" in before, "a CNAME needs the name to itself"


def test_canonical_is_what_an_answer_gives():
    reply = dns.message.make_response(dns.message.make_query(NAME, "AAAA"))
    reply.answer.append(dns.rrset.from_text("APP.venue.test.", 60, "IN", "AAAA", "2001:DB8::2", "2001:db8:0::1"))
    written = records.canonical(NAME, "AAAA", 60, ("2001:0db8::0001", "2001:db8::2", "2001:db8::2"))
    assert records.rrset_in(reply, "AAAA", NAME) == written
    assert written.values == ("2001:db8::1", "2001:db8::2")
    with pytest.raises(BadInput, match="nonsense"):
        records.canonical(NAME, "A", 60, ("nonsense",))


@pytest.mark.parametrize(
    ("text", "epoch"),
    [('"epoch=7 owner=relight"', 7), (None, None)],
)
def test_epoch(text, epoch):
    reply = dns.message.make_response(dns.message.make_query("_relight." + NAME, "TXT"))
    if text:
        reply.answer.append(dns.rrset.from_text("_relight." + NAME, 60, "IN", "TXT", text))
    assert records.epoch_in(reply, "_relight." + NAME) == epoch


@pytest.mark.parametrize(
    "texts", [['"epoch=07 owner=relight"'], ['"epoch=7 owner=other"'], ['"epoch=7 owner=relight"', '"more"']]
)
def test_a_foreign_epoch_record_is_never_overwritten(texts):
    reply = dns.message.make_response(dns.message.make_query("_relight." + NAME, "TXT"))
    reply.answer.append(dns.rrset.from_text("_relight." + NAME, 60, "IN", "TXT", *texts))
    with pytest.raises(Rejected, match="not written by relight"):
        records.epoch_in(reply, "_relight." + NAME)


@pytest.mark.parametrize(
    ("serial", "wanted", "reached"),
    [(5, 5, True), (6, 5, True), (4, 5, False), (2, 2**32 - 3, True), (2**32 - 3, 2, False)],
)
def test_serials_wrap(serial, wanted, reached):
    assert serial_reached(serial, wanted) is reached


def test_the_lab_loads():
    settings = PROVIDER.Settings.model_validate(lab())
    assert settings.names[NAME].A["east"] == ("127.0.2.10",)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"key_algorithm": "hmac-md5"}, "hmac-sha256"),
        ({"key_secret": "c2VjcmV0"}, "reference to a secret"),
        ({"names": {}}, "at least 1"),
        ({"names": {"app.other.test.": {"ttl": 5, "A": {"west": ["192.0.2.1"]}}}}, "not in zone"),
        ({"names": {"*.venue.test.": {"ttl": 5, "A": {"west": ["192.0.2.1"]}}}}, "wildcard"),
        ({"names": {NAME: {"ttl": 5, "A": {"west": []}}}}, "never lose its last record"),
        ({"names": {NAME: {"ttl": 5, "A": {"west": ["2001:db8::1"]}}}}, "2001:db8::1"),
        ({"names": {NAME: {"ttl": 5, "NS": {"west": ["ns.test."]}}}}, "Extra inputs"),
        ({"names": {NAME: {"ttl": 5}}}, "at least one of"),
        ({"names": {NAME: {"ttl": 0, "A": {"west": ["192.0.2.1"]}}}}, "greater than or equal to 1"),
        ({"names": {NAME: {"ttl": 5, "CNAME": {"west": ["a.", "b."]}}}}, "can have one"),
        (
            {"names": {NAME: {"ttl": 5, "CNAME": {"west": ["a."]}, "A": {"west": ["192.0.2.1"]}}}},
            "no A or AAAA",
        ),
        ({"serverz": []}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_be(change, says):
    with pytest.raises(ValidationError, match=says):
        PROVIDER.Settings.model_validate({**lab(), **change})


@pytest.mark.parametrize("text", ["tcp:0", "tcp:70000", "http:80", "udp:53", "http:80/a b", ""])
def test_probes_that_cannot_be(text):
    with pytest.raises(ValueError, match="expected tcp:PORT"):
        _check(text)


def test_parameters():
    point = Point.model_validate({"name": "App.venue.test", "site": "target", "probe": "http:8080/readyz"})
    assert point.record == NAME
    with pytest.raises(ValidationError, match="less than ttl"):
        Verify.model_validate({"name": NAME, "site": "target", "ttl": "60s", "within": "30s"})
    assert Verify.model_validate({"name": NAME, "site": "target", "within": "8s"}).least_timeout_s() == 8
