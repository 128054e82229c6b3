"""``relight serve`` with its own Prefect, the lab beside it, and Debian's Chromium in front of both."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "real"))
from patience import until
from served import RELIGHT, Serve

from flows.engine import places

ROOT = Path(__file__).parent.parent.parent
WAIT_MS = 90_000
CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
"""Chromium of Debian asks Google for updates and the like at every start without them."""
NOT_OURS = (
    "favicon",  # Prefect's pages name icons that its wheel does not have
    ".svg",
    "(Service Unavailable)",  # SQLite is busy; pressed again (Site.submit)
    "Unknown error while creating flow run",  # what the page says of that
    "(Unprocessable Entity)",  # what Prefect 3.8's page of an artifact without a task run asks the server for
    "GL Driver Message",
    "Cannot read properties of null (reading 'x')",  # Prefect's graph of a flow run that is left while it is drawn
    "amplitude",  # what the policy of relight's server stops; see Site.reached
)

STATE = re.compile(r"^(Scheduled|Late|Pending|Running|Paused|Completed|Failed|Crashed|Cancell(ing|ed)|Refused)$")


@dataclass
class Site:
    """What a person has in front of them: the UI, and what went wrong in it.

    Attributes:
        reached: addresses other than relight's server that the browser asked, answered or not.
        errors: JavaScript's exceptions and what it wrote to the console as errors.
    """

    serve: Serve
    page: Any
    shots: Path
    reached: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.serve.api.removesuffix("/api")

    def open(self, path: str) -> None:
        """A page of the newer UI, which is the one that people get."""
        self.page.goto(f"{self.url}/v2/{path}")

    def shot(self, name: str) -> None:
        self.page.screenshot(path=self.shots / f"{name}.png", animations="disabled")

    def form(self, deployment: str) -> Any:
        """The way a person gets to the form of a deployment: the list, the deployment, Run, Custom run."""
        self.open("deployments")
        self.page.locator("a[href*='/deployments/deployment/']", has_text=re.compile(f"^{deployment}$")).click()
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Custom run").click()
        self.page.get_by_role("heading", name="Parameters").wait_for()
        return self.page.locator("main")

    def choose(self, label: str, option: str, within: Any = None) -> None:
        """An option of a drop-down. A click while the one before still closes only closes that: it is pressed again."""
        from playwright.sync_api import Error  # noqa: PLC0415 - skipped, not broken, where it is missing

        button = (within or self.page.locator("main")).get_by_role("button", name=f"Select {label}", exact=True)
        wanted = self.page.get_by_role("option", name=option, exact=True)

        def opened() -> bool:
            with contextlib.suppress(Error):
                if not wanted.is_visible():
                    button.click(timeout=5000)
                wanted.wait_for(timeout=5000)
            return bool(wanted.is_visible())

        until(opened, 60)
        wanted.click()
        wanted.wait_for(state="hidden")

    def state(self) -> Any:
        """The badge of the flow run that is open; it follows the run."""
        return self.page.locator("main [class*=badge], main span").filter(has_text=STATE).first

    def card(self, key: str) -> Any:
        """An artifact on the tab Artifacts."""
        return self.page.get_by_role("tabpanel", name="Artifacts").locator(f"a[href$='/artifacts/key/{key}']").first

    def resume(self) -> Any:
        """The dialog with the form of a run that is paused."""
        self.page.get_by_role("button", name="Open menu").click()
        self.page.get_by_role("menuitem", name="Resume").click()
        return self.page.get_by_role("dialog", name="Resume Flow Run")

    def runs(self, flow: str) -> list[str]:
        body = {"flows": {"name": {"any_": [flow]}}}
        return [str(r["id"]) for r in self.serve.post("flow_runs/filter", body)]

    def submit(self, form: Any, button: str, done: Callable[[], bool]) -> None:
        """Press until the server says that it is ``done``, as a person would.

        Prefect's server answers 503 while SQLite is busy. Its newer UI hides the button while it asks, shows it again
        after a refusal, and holds what it refused against the next press until it has looked at the fields again.
        """
        from playwright.sync_api import Error  # noqa: PLC0415 - skipped, not broken, where it is missing

        pressed = form.get_by_role("button", name=button, exact=True)

        def taken() -> bool:
            if done():
                return True
            with contextlib.suppress(Error):  # it went away meanwhile
                pressed.click(timeout=2000)
            with contextlib.suppress(Error):
                pressed.wait_for(state="hidden", timeout=5000)
            return done()

        until(taken, 90)

    def start(self, form: Any, flow: str, besides: set[str]) -> str:
        """Submit the form of a deployment. The id of the flow run that it started, other than ``besides``."""
        self.submit(form, "Submit", lambda: bool(set(self.runs(flow)) - besides))
        (found,) = set(self.runs(flow)) - besides
        return found

    def logged(self, run: str, text: str) -> None:
        """Wait until the server has a line of the log: Prefect sends them in batches."""
        body = {"logs": {"flow_run_id": {"any_": [run]}}}
        until(lambda: any(text in line["message"] for line in self.serve.post("logs/filter", body)), 30)

    def watch(self, page: Any) -> None:
        page.on("pageerror", lambda e: self._told(str(e)))
        page.on("console", self._heard)
        page.on("requestfinished", lambda r: None if self._ours(r.url) else self.reached.append(r.url))
        page.on("requestfailed", self._failed)

    def _failed(self, request: Any) -> None:
        # what the page's own policy stops never leaves the browser
        if not self._ours(request.url) and request.failure not in ("csp", "net::ERR_BLOCKED_BY_CSP"):
            self.reached.append(f"{request.url} ({request.failure})")

    def _heard(self, message: Any) -> None:
        if message.type == "error":
            self._told(f"{message.text} {message.location.get('url', '')}")

    def _told(self, error: str) -> None:
        if not any(word in error for word in NOT_OURS):
            self.errors.append(error)

    def _ours(self, url: str) -> bool:
        return url.startswith((f"{self.url}/", "data:", "blob:"))


@pytest.fixture(scope="session")
def shots() -> Path:
    """Where screenshots are kept."""
    folder = Path(os.environ.get("RELIGHT_SCREENSHOTS") or ROOT / "build" / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """``relight serve`` in a folder whose ``runbooks/lab`` is the shipped one, with approvals by name in the UI."""
    home = tmp_path_factory.mktemp("site")
    shutil.copytree(places.data("runbooks") / "lab", home / "runbooks" / "lab")
    system = home / "runbooks" / "lab" / "system.yaml"
    asked = "    provider: people.directory\n"
    text = system.read_text(encoding="utf-8")
    assert text.count(asked) == 1
    text = text.replace(asked, asked + "    ui: true\n")
    objective = "application: {rto: 5m}"
    assert text.count(objective) == 1
    # of a busy machine: what the browser takes to show a form and to send it counts too
    system.write_text(text.replace(objective, "application: {rto: 20m}"), encoding="utf-8")
    lab = os.environ.get("RELIGHT_LAB") or str(places.lab_home())
    serve = Serve(tmp_path_factory.mktemp("state"), folder=home, more={"RELIGHT_LAB": lab})
    try:
        serve.start(ready=False)
        done = subprocess.run([RELIGHT, "lab", "up"], env=serve.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        serve.ready()
        yield serve
    finally:
        subprocess.run([RELIGHT, "lab", "down"], env=serve.env, capture_output=True, check=False)
        serve.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is not here: bash deployments/lab/install.sh")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make install")
    playwright.expect.set_options(timeout=WAIT_MS)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, headless=True, chromium_sandbox=False, args=list(FLAGS)
        )
        yield browser
        browser.close()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


FAILED = pytest.StashKey[bool]()


@pytest.fixture
def site(request: pytest.FixtureRequest, served: Serve, chromium: Any, shots: Path) -> Iterator[Site]:
    """A new browser profile. After a failure: a last screenshot and a trace (``playwright show-trace``) are kept."""
    context = chromium.new_context(viewport={"width": 1280, "height": 860}, color_scheme="light")
    context.set_default_timeout(WAIT_MS)
    context.tracing.start(snapshots=True)
    one = Site(served, context.new_page(), shots)
    one.watch(one.page)
    yield one
    name = f"failed-{request.node.name}"
    if request.node.stash.get(FAILED, False):
        one.shot(name)
        context.tracing.stop(path=shots / f"{name}.zip")
    context.close()
