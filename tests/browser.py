"""A reviewer's hands in Label Studio: a real browser that logs in, reads a form, answers and submits.

Debian's chromium, driven by Playwright. `.venv/bin/python tests/browser.py docs/pictures/reviewing` takes the
pictures of `docs/reviewing.md` anew: it starts a Label Studio and a small project of its own.
"""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pictures import QUIET, chromium
from playwright.sync_api import Browser, Locator, Page, sync_playwright
from playwright.sync_api import TimeoutError as TooLate

WIDTH, HEIGHT, SCALE = 1375, 1000, 0.8
"""Of the window in pixels; pictures are 1100 wide."""
Said = Mapping[str, str | Sequence[str]]
"""What is chosen or typed, by the form's field; choices in the words that stand on the screen."""
_ROWS = 20


class Desk:
    """A browser at one Label Studio. Each person who logs in has a window of their own."""

    def __init__(self, url: str, pictures: Path | None = None):
        self._url, self._pictures = url, pictures

    def __enter__(self) -> "Desk":
        self._playwright = sync_playwright().start()
        self._browser: Browser = self._playwright.chromium.launch(
            executable_path=chromium(), args=list(QUIET)
        )
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._browser.close()
        self._playwright.stop()

    def log_in(self, email: str, password: str) -> "Reviewer":
        page = self._browser.new_context(
            viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=SCALE
        ).new_page()
        page.set_default_timeout(30_000)
        page.goto(f"{self._url}/user/login/", wait_until="domcontentloaded")
        reviewer = Reviewer(page, self._pictures)
        reviewer.picture("log_in", page.locator("body"))
        page.fill("input[name=email]", email)
        page.fill("input[name=password]", password)
        with page.expect_navigation(wait_until="domcontentloaded"):
            page.click("button[type=submit]")
        assert "/user/login" not in page.url, f"{email} cannot log in"
        return reviewer


class Reviewer:
    """Somebody who is logged in. What they do, they do by mouse and keyboard."""

    def __init__(self, page: Page, pictures: Path | None):
        self.page, self._pictures = page, pictures

    def open(self, link: str, picture: str = "") -> str:
        """Follow the link of a review and begin; returns the text of the first form."""
        self.page.goto(link, wait_until="domcontentloaded")
        begin = self.page.get_by_role("button", name=re.compile("^Label All Tasks"))
        begin.wait_for()
        self.page.wait_for_timeout(500)
        if picture:
            self.picture(picture)
        begin.click()
        # What is asked is shown over the first form of a session.
        close = self.page.locator(".lsf-modal-ls_visible button").first
        close.wait_for()
        close.click()
        close.wait_for(state="hidden")
        return self.form()

    def again(self, link: str, task: int) -> str:
        """Open an answer that was submitted before; returns the text of the form."""
        self.page.goto(f"{link}?task={task}", wait_until="domcontentloaded")
        self._button("Update").wait_for()
        return self.form()

    def anew(self, link: str, task: int) -> str:
        """Begin an answer of one's own beside those that stand there; returns the text of the form."""
        self.page.goto(f"{link}?task={task}", wait_until="domcontentloaded")
        self._button("Update").wait_for()
        self.page.locator("button[aria-label='Create an annotation']").click()
        self._button("Submit").wait_for()
        return self.form()

    def form(self) -> str:
        """The text of the form that is shown."""
        self._form.wait_for()
        return self._form.inner_text()

    def fill(self, said: Said) -> None:
        """Choose and type, in the order given. Nobody presses the "Add" below a text."""
        for field, value in said.items():
            if field in ("corrected", "comment", "conditions"):
                self._form.locator(f"textarea[name={field}]:visible").fill(str(value))
                continue
            for label in [value] if isinstance(value, str) else value:
                choice = re.compile(rf"^{re.escape(label)}(\[\w+\])?$")
                self._form.locator("label", has_text=choice).click()

    def submit(self, button: str = "Submit") -> None:
        """Press the button; returns when the server has taken it."""
        saved = re.compile(r"/annotations(/\d+)?/?(\?|$)")
        with self.page.expect_response(
            lambda r: bool(saved.search(r.url)) and r.request.method in ("POST", "PATCH", "PUT")
        ) as sent:
            self._button(button).click()
        assert sent.value.ok, f"Label Studio did not take it: {sent.value.status}"

    def wait_for_another(self, shown: str) -> str:
        """The next form after `shown`, or what stands there when there is no other."""
        for _ in range(60):
            self.page.wait_for_timeout(250)
            now = self._form.inner_text() if self._form.count() else self.page.inner_text("body")
            if now != shown:
                return now
        raise AssertionError("no other form came")

    def complaint(self) -> str:
        """What the form says when something is missing: pressed, nothing is sent."""
        self._button("Submit").click()
        self._box.wait_for()
        said = self._box.inner_text()
        for _ in range(60):  # a click while the dialog still grows is lost on a busy machine
            if not self._box.is_visible():
                return said
            with contextlib.suppress(TooLate):  # it may be gone by now
                self._box.get_by_role("button", name="OK").click(timeout=1_000)
            self.page.wait_for_timeout(500)
        raise AssertionError("the complaint does not close")

    def picture(self, name: str, of: Locator | None = None) -> None:
        """Keep what is seen, where pictures are wanted: the window, or a part of it in full height."""
        if self._pictures is None:
            return
        keep(self._pictures / f"{name}.png", of.screenshot() if of else self.page.screenshot())

    def picture_of_form(self, name: str) -> None:
        """Keep a form in full height, also what one would scroll to."""
        if self._pictures is None:
            return
        self.page.set_viewport_size({"width": WIDTH, "height": 2600})
        self.page.wait_for_timeout(500)
        self.picture(name, self._form)
        self.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})

    @property
    def _form(self) -> Locator:
        return self.page.locator(".ftr, .so, .ma, .bg, .pref").first

    @property
    def _box(self) -> Locator:
        return (
            self.page.get_by_role("dialog").or_(self.page.locator(".ant-modal, .lsf-modal-ls_visible")).last
        )

    def _button(self, text: str) -> Locator:
        return self.page.locator("button[aria-label^='submit' i]", has_text=text).first


def keep(path: Path, png: bytes) -> None:
    """Write a picture with few colours: a fraction of the bytes, as good to read."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(
        path, optimize=True
    )


# -- the pictures of docs/reviewing.md ---------------------------------------------------------------


def take_pictures(target: Path) -> None:
    """Go through the reviews of an example project, as its three people, and keep what they see."""
    from conftest import ROOT, free_ports
    from label_studio import Studio

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        studio = Studio(root / "studio")
        for name in ("projects/maintenance_assistant", "policy"):
            shutil.copytree(ROOT / name, root / name)
        project = root / "projects" / "maintenance_assistant" / "project.yaml"
        project.write_text(
            project.read_text("utf-8") + f"reviews: {{row_sample: {_ROWS}}}\n", encoding="utf-8"
        )
        chosen = {
            "FTAAS_HOME": root / "home",
            "FTAAS_PROJECTS": root / "projects",
            "FTAAS_POLICY": root / "policy" / "platform.yaml",
            "FTAAS_ACTOR": "olga.owner@example.com",
        }
        for name, port in zip(("PRODUCTION", "STAGING"), free_ports(2), strict=True):
            chosen[f"FTAAS_PORT_{name}"] = port
        os.environ.update({name: str(value) for name, value in chosen.items()})
        try:
            studio.start()
            studio.attach(root / "home")
            with Desk(studio.url, target) as desk:
                _as_reviewers(desk, studio)
        finally:
            _ftaas("deployment", "stop", "maintenance_assistant", "--env", "staging")
            studio.stop()


def _as_reviewers(desk: Desk, studio: Any) -> None:
    sam, rita, alex = (
        desk.log_in(email, studio.user(email).password)
        for email in ("sam.expert@example.com", "rita.responsible@example.com", "alex.approver@example.com")
    )
    shown = sam.open(_awaited()["sme"], picture="tasks")
    sam.fill({"verdict": "Fix - I give the corrected text"})
    stands = sam.page.locator("textarea[name=corrected]").input_value()
    corrected = re.sub(r'"priority": "\w+"', '"priority": "urgent"', stands)
    sam.fill({"corrected": corrected, "reason": "Factually wrong"})
    sam.picture_of_form("row")
    for _ in range(_ROWS - 1):
        sam.submit()
        shown = sam.wait_for_another(shown)
        sam.fill({"verdict": "Approve as is"})
    sam.submit()
    waits = _awaited()
    sam.open(waits["sme"])
    sam.fill({"decision": "Approve for training"})
    sam.picture_of_form("sign_off_sme")
    sam.fill(
        {"checks": ["I looked at the row review result and the rejected rows"], "comment": "read the sample"}
    )
    sam.submit()
    rita.open(waits["rai"])
    rita.fill({"decision": "Approve for training"})
    rita.picture_of_form("sign_off_rai")
    rita.fill({"checks": ["Source and licence allow this use"], "comment": "invented data"})
    rita.submit()
    alex.open(_awaited()["approver"])
    alex.picture("approval")
    alex.fill({"decision": "Approve with conditions"})
    alex.picture("approval_decision", alex.page.locator(".ma-decide"))


def _awaited() -> dict[str, str]:
    """Run the line up to where it waits; returns role to link."""
    done = _ftaas("run", "maintenance_assistant", "--json")
    assert done.returncode == 3, done.stdout + done.stderr
    return {w["role"]: w["link"] for w in json.loads(done.stdout)["waiting"]}


def _ftaas(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ftaas_pipelines.cli.main", *words]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False)


if __name__ == "__main__":
    take_pictures(Path(sys.argv[1]))
