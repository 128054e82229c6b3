"""What senders run on their side runs, and is believed: Zabbix's script, by Node.js, and the example of the shell."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.intake.event import Delivery, Denied
from flows.intake.source import of

pytestmark = pytest.mark.real
ROOT = Path(__file__).resolve().parents[2]
STUB = """
function HttpRequest() {
  var headers = [];
  this.addHeader = function (h) { headers.push(h); };
  this.getStatus = function () { return STATUS; };
  this.post = function (url, body) {
    console.log(JSON.stringify({url: url, headers: headers, body: body}));
    return 'no';
  };
}
(function (value) { SCRIPT })(process.argv[1]);
"""


def zabbix(given, status=202):
    """What the media type's script sends. Zabbix runs it as the body of a function of ``value``."""
    file = YAML(typ="safe").load((ROOT / "deployments" / "alerts" / "zabbix.yaml").read_text(encoding="utf-8"))
    script = file["zabbix_export"]["media_types"][0]["script"]
    code = STUB.replace("STATUS", str(status)).replace("SCRIPT", script)
    return subprocess.run(
        ["node", "-e", code, json.dumps(given)], capture_output=True, text=True, timeout=120, check=False
    )


def test_zabbixs_script():
    given = {"url": "https://relight/alerts/z", "token": "t0ken", "event_id": "9", "value": "1", "name": 'a "b"'}
    ran = zabbix(given)
    assert ran.returncode == 0, ran.stderr
    sent = json.loads(ran.stdout)
    assert sent["url"] == given["url"]
    assert "Authorization: Bearer t0ken" in sent["headers"]
    assert "t0ken" not in sent["body"]
    source, body = of("zabbix")(of("zabbix").Settings(source="zabbix")), json.loads(sent["body"])
    (alert,) = source.read(body, Delivery("z", sent["body"].encode(), datetime.now(UTC)))
    assert (alert.kind, alert.cycle, alert.title, alert.trigger) == ("firing", "9", 'a "b"', True)
    assert abs(alert.observed_at - datetime.now(UTC)) < timedelta(minutes=1)
    refused = zabbix(given, 503)
    assert refused.returncode != 0
    assert "relight answered 503" in refused.stderr


def test_the_example_of_the_shell(monkeypatch):
    """Of docs/alerts.md, with ``curl`` only saying what it was given."""
    script = re.search(r"```bash\n(.*?)```", (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    secret = "whsec_" + base64.b64encode(bytes(range(32))).decode()
    curl = 'curl() { for a in "$@"; do printf "%s\\0" "$a"; done; }\n'
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"SECRET={secret} URL=https://relight\n{curl}{script}"],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    given = ran.stdout.decode().split("\0")
    headers = dict(h.split(": ", 1) for flag, h in itertools.pairwise(given) if flag == "-H")
    body = given[given.index("--data-binary") + 1].encode()
    monkeypatch.setenv("WHSEC", secret)
    settings = of("standardwebhooks").Settings(source="standardwebhooks", secrets=("env:WHSEC",))
    source = of("standardwebhooks")(settings)
    sent = Delivery("probe", body, datetime.now(UTC), headers=headers)
    assert asyncio.run(source.authenticate(sent)).replay_protected
    (alert,) = source.read(json.loads(body), sent)
    assert (alert.kind, alert.fingerprint, alert.labels) == ("firing", "shop-db", {"system": "shop"})
    with pytest.raises(Denied):
        asyncio.run(source.authenticate(Delivery("probe", body + b" ", sent.received_at, headers=headers)))
