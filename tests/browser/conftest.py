"""A real browser without a window, and pages that reach nothing but what they are shown."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")


@dataclass(frozen=True, eq=False)
class Watched:
    """A page under watch.

    Attributes:
        page: Playwright's page.
        errors: What it logged as an error, or threw.
        asked: Addresses it asked for and did not get, because they are elsewhere.
    """

    page: object
    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def browser_path() -> str:
    """Chromium or one of its kin."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is on the PATH (Debian's package is chromium)")
    return executable


@pytest.fixture(scope="module")
def browser(browser_path):
    """A browser without a window.

    A module's only: while it runs there is an event loop in this thread, which other tests' code would stumble over.
    """
    from playwright.sync_api import sync_playwright

    # Chromium's sandbox refuses root, which containers often run as.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser_path, args=flags)
        yield started
        started.close()


@pytest.fixture
def watch(browser) -> Iterator:
    """Opens pages that may ask only for addresses that start as given."""
    contexts = []

    def open_page(allowed: str, **options) -> Watched:
        contexts.append(browser.new_context(viewport={"width": 1500, "height": 1100}, **options))
        watched = Watched(contexts[-1].new_page())

        def answer(route) -> None:
            if route.request.url.startswith(allowed):
                route.continue_()
                return
            watched.asked.append(route.request.url)
            route.abort()

        contexts[-1].route("**/*", answer)
        watched.page.on("pageerror", lambda error: watched.errors.append(str(error)))
        watched.page.on("console", lambda said: watched.errors.append(said.text) if said.type == "error" else None)
        return watched

    yield open_page
    for context in contexts:
        context.close()
