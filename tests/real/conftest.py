"""The real lab, one for each test module that asks for it, and the command line as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import aws as aws_ground
import iam
from patience import until

from tasks.reached import HEARD

RELIGHT = Path(sys.executable).with_name("relight")


@dataclass
class Result:
    """One call of the command line."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out, f"no output; exit {self.code}; {self.err}"
        return json.loads(self.out)

    @property
    def failed_step(self) -> dict[str, Any]:
        """Of a report in JSON: the first step that failed or is unknown."""
        return next(s for s in self.json["steps"] if s["outcome"] in ("failed", "unknown"))


@dataclass
class Lab:
    """The lab, driven by its own commands."""

    env: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    def relight(self, *words: str, timeout_s: float = 600, **env: str) -> Result:
        done = subprocess.run(
            [RELIGHT, *words],
            env={**os.environ, **self.env, **env},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def do(self, *words: str) -> str:
        """A command of the lab that must work."""
        done = self.relight("lab", *words)
        assert done.code == 0, f"lab {words}: {done.err}{done.out}"
        return done.out

    def up(self) -> None:
        self.do("up", *self.options)

    def fresh(self, *options: str) -> None:
        """As after a first start: west active, everything healthy."""
        self.do("down")
        self.options = options
        self.up()

    def fault(self, *words: str) -> dict[str, Any]:
        return json.loads(self.do("fault", *words, "--json"))

    def heal(self) -> None:
        self.do("heal")

    def run(self, book: str, *words: str, **env: str) -> Result:
        return self.relight("run", book, "--system", "lab", "--offline", "--json", *words, **env)

    def home(self) -> Path:
        return Path(self.env["RELIGHT_LAB"])

    def roles(self) -> dict[str, str]:
        """node -> primary, replica, or why it does not answer."""
        return json.loads(self.relight("lab", "status", "--json").out)["database"]

    def primary(self) -> str:
        found = until(lambda: [n for n, r in self.roles().items() if r == "primary"], what="a primary answers")
        assert len(found) == 1, found
        return str(found[0])

    def acknowledged(self, acks: Path) -> int:
        return acks.read_text().count('"acked"') if acks.exists() else 0

    def load(self) -> Load:
        return Load(self)


class Load:
    """Clients writing all the time, inside a ``with``; ``counted`` afterwards."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.acks = Path()
        self.since = ""

    def __enter__(self) -> Self:
        self.acks = Path(self.lab.do("load", "start").strip())
        self.more(50)
        return self

    def __exit__(self, *_: object) -> None:
        self.lab.relight("lab", "load", "stop")

    def more(self, count: int) -> None:
        """Until ``count`` more writes were acknowledged."""
        before = self.lab.acknowledged(self.acks)
        until(lambda: self.lab.acknowledged(self.acks) >= before + count, 30)

    def counted(self) -> dict[str, Any]:
        words = ["--since", self.since] if self.since else []
        return json.loads(self.lab.do("load", "count", "--json", "--acks", str(self.acks), *words))


@pytest.fixture(scope="session", name="until")
def _until() -> Callable[..., Any]:
    return until


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    home = os.environ.get("RELIGHT_LAB") or f"/tmp/relight-lab-{os.getuid()}"  # noqa: S108 - the lab's own default
    lab = Lab({"RELIGHT_LAB": home, "RELIGHT_STATE": str(tmp_path_factory.mktemp("state"))})
    lab.fresh()
    try:
        yield lab
    finally:
        lab.do("down")


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[aws_ground.Moto]:
    """One server for a module, kept between its tests; boto3's environment points at it."""
    with aws_ground.moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture
def aws(moto: aws_ground.Moto) -> aws_ground.Moto:
    """The module's server, with nothing in it."""
    moto.reset()
    return moto


@pytest.fixture(autouse=True)
def _calls_heard(request: pytest.FixtureRequest) -> Iterator[None]:
    """Notes every call to AWS in a module that says whose provider it tests, for ``iam.check``."""
    provider = getattr(request.module, "PROVIDER_NAME", None)
    token = HEARD.set(iam.HEARD[provider].add) if provider else None
    yield
    if token is not None:
        HEARD.reset(token)
