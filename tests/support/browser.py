"""A real browser for tests: the system's Chromium, driven by Playwright, with a record of what went wrong in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, Response, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def need_chromium() -> str:
    """Where it is. Skips the test where there is none, and fails it in CI, which installs one."""
    if CHROMIUM is None:
        reason = "no Chromium here; on Debian: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return CHROMIUM


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser without a profile."""
    path = need_chromium()
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        try:
            yield found
        finally:
            found.close()


@dataclass
class Watched:
    """A page, and what happened in it."""

    page: Page
    said: list[str] = field(default_factory=list)  # in the console: warnings and errors
    asked: list[str] = field(default_factory=list)  # URLs
    weight: int = 0  # bytes of bodies, streams left out

    def goto(self, url: str) -> None:
        """Open a URL, and wait for its scripts; a stream that never ends is not waited for."""
        self.page.goto(url, wait_until="load")

    def broken_rules(self) -> list[str]:
        """What axe-core has against the page as it is: rules of WCAG 2.2, A and AA, and where they are broken."""
        options = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"], "resultTypes": ["violations"]}
        found = Axe().run(self.page, options=options).response["violations"]
        return [f"{rule['id']}: {node['target']}: {node['failureSummary']}" for rule in found for node in rule["nodes"]]

    def first_paint_ms(self) -> float:
        """From the beginning of the navigation to the first text or picture."""
        script = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
        self.page.wait_for_function(f"({script}) !== null")
        return float(self.page.evaluate(script))


@contextmanager
def watched(chromium: Browser, **context: object) -> Iterator[Watched]:
    """A page in a context of its own: no cookies, storage or cache of others.

    Args:
        context: What Playwright's `new_context` takes: `viewport`, `color_scheme`.
    """
    own = chromium.new_context(**context)  # type: ignore[arg-type]
    found = Watched(own.new_page())
    found.page.set_default_timeout(10_000)

    def asked(request: Request) -> None:
        found.asked.append(request.url)

    def answered(response: Response) -> None:
        if not response.headers.get("content-type", "").startswith("text/event-stream") and response.ok:
            found.weight += int(response.headers.get("content-length", 0))

    found.page.on("request", asked)
    found.page.on("response", answered)
    found.page.on("pageerror", lambda error: found.said.append(str(error)))
    found.page.on("console", lambda line: found.said.append(line.text) if line.type in ("error", "warning") else None)
    try:
        yield found
    finally:
        own.close()
