"""Looks at the Dagster UI with a real browser; `python tests/pictures.py` takes the README's pictures.

Debian's chromium, driven by Playwright. After `make demo` and `ftaas run grammar_correction`, which
waits for its reviewers, and with `make dev` running: `.venv/bin/python tests/pictures.py docs/pictures`
"""

import re
import shutil
import sys
from pathlib import Path
from types import TracebackType

from playwright.sync_api import Page, sync_playwright

LOCATION = "__repository__@ftaas_pipelines.definitions"
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str | None:
    """Path of the browser, or None where it is not installed."""
    return shutil.which("chromium")


class Ui:
    """The Dagster UI of one project; every look leaves a picture in `folder`."""

    def __init__(self, port: int, project: str, folder: Path):
        self._root, self._project, self._folder = f"http://127.0.0.1:{port}", project, folder

    def __enter__(self) -> "Ui":
        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(executable_path=chromium(), args=list(QUIET))
        self._page: Page = self._browser.new_page(viewport={"width": 1680, "height": 900})
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._browser.close()
        self._playwright.stop()

    def line(self) -> str:
        """The graph of the project's assets; returns the text that it shows in its list."""
        self._open(f"locations/{LOCATION}/asset-groups/{self._project}/lineage")
        self._page.get_by_text("splits", exact=True).first.wait_for(timeout=60_000)
        self._page.wait_for_timeout(3000)
        self._picture("line")
        self._open(f"locations/{LOCATION}/asset-groups/{self._project}/list")
        self._page.get_by_text("dataset_sign_off").first.wait_for(timeout=60_000)
        self._page.wait_for_timeout(1000)
        return self._page.inner_text("body")

    def checks(self, asset: str) -> str:
        """The checks of an asset, with what the last run of the first one said."""
        self._open(f"assets/{self._project}/{asset}?view=checks")
        self._page.get_by_text(re.compile(r"Latest execution")).first.wait_for(timeout=60_000)
        self._page.wait_for_timeout(1000)
        self._picture(f"checks_{asset}")
        return self._page.inner_text("body")

    def metadata(self, asset: str) -> str:
        """What the latest materialization of an asset says, with the addresses of its links."""
        self._open(f"assets/{self._project}/{asset}?view=overview")
        self._page.get_by_text("waiting for").first.wait_for(timeout=60_000)
        self._page.wait_for_timeout(2000)
        self._picture(f"metadata_{asset}")
        links = [str(a.get_attribute("href")) for a in self._page.locator("a[href^='http']").all()]
        return " ".join([self._page.inner_text("body"), *links])

    def loss_curve(self, asset: str) -> int:
        """The loss curve as the asset's page shows it; returns its area in pixels."""
        shown = self._page.get_by_text("[Show Markdown]").first
        for _ in range(12):  # the event may come a moment after the artifact
            self._open(f"assets/{self._project}/{asset}?view=overview")
            self._page.wait_for_timeout(8000)
            if shown.is_visible():
                break
        shown.click(timeout=10_000)
        image = self._page.locator("img[src^='data:image/png']").first
        image.wait_for(timeout=30_000)
        self._page.wait_for_timeout(1000)
        box = image.bounding_box()
        if box is None:
            return 0
        around = {
            "x": box["x"] - 24,
            "y": box["y"] - 70,
            "width": box["width"] + 48,
            "height": box["height"] + 90,
        }
        self._page.screenshot(path=self._folder / f"loss_{asset}.png", clip=around)
        return int(box["width"] * box["height"])

    def _open(self, path: str) -> None:
        self._page.goto(f"{self._root}/{path}", wait_until="domcontentloaded")

    def _picture(self, name: str) -> None:
        self._page.screenshot(path=self._folder / f"{name}.png")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    with Ui(3000, "maintenance_assistant", target) as ui:
        ui.line()
        ui.checks("evaluation")
        ui.loss_curve("adapter_lora")
    with Ui(3000, "grammar_correction", target) as ui:
        ui.checks("adapter_full")
