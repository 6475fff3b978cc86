"""A headless Chromium for tests of pages, and a record of everything a page must not do."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Request

REQUIRED = "SAELINEAGE_NEEDS_BROWSER"
"""If this variable is set, a missing browser is a failure; otherwise tests of pages are skipped."""
NAMES = ("chromium", "chromium-browser", "google-chrome")
SIZE = {"width": 1400, "height": 1000}
Page = Any
"""playwright's Page with an attribute of our own, `seen`."""


def chromium_path() -> str | None:
    """The system's browser, if there is one."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def require_chromium() -> None:
    """Skip a test if there is no browser; fail it if one is required."""
    if chromium_path() is None or find_spec("playwright") is None:
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(
            "tests of pages need playwright and Chromium; install requirements-dev.txt and Debian's chromium"
        )


@contextmanager
def chromium() -> Iterator["Browser"]:
    """A browser, closed at the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Containers rarely grant the rights that a sandbox needs, and have little shared memory; the pages are our own.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=options)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser: "Browser", url: str, **options: Any) -> Iterator[Page]:
    """A page in its own context; `page.seen` lists everything it did that it must not do.

    Args:
        browser: from `chromium`.
        url: address of the page.
        options: of the context, such as `color_scheme`.
    """
    context = browser.new_context(**({"viewport": SIZE} | options))
    page: Page = context.new_page()
    page.seen = watched(page, url)
    page.goto(url)
    try:
        yield page
    finally:
        context.close()


def watched(page: Page, url: str) -> list[str]:
    """The page's console messages, errors, dialogs and requests to other places, added as they come."""
    seen: list[str] = []
    scheme = url.split(":", 1)[0]
    allowed = (f"{scheme}:" if scheme == "file" else "/".join(url.split("/")[:3]), "data:", "blob:")
    page.on("console", lambda message: seen.append(f"console {message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))

    def notice(request: "Request") -> None:
        if not request.url.startswith(allowed):
            seen.append(f"request: {request.url}")

    def refuse(dialog: "Dialog") -> None:
        seen.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("request", notice)
    page.on("dialog", refuse)
    return seen


def wait_until(page: Page, function: str, argument: object = None, timeout_seconds: float = 30.0) -> None:
    """Wait until a function in the page returns a true value.

    Playwright's wait_for_function evaluates text inside the page, which the page's content security policy forbids.
    """
    ends = time.monotonic() + timeout_seconds
    while not page.evaluate(function, argument):
        assert time.monotonic() < ends, f"waited {timeout_seconds} s for {function} with {argument!r}"
        page.wait_for_timeout(10)


def to_uri(path: Path) -> str:
    """The file: address of a path."""
    return path.resolve().as_uri()
