"""A headless Chromium for tests of pages, and what a page did that it should not have done."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

REQUIRED = "SAELINEAGE_NEEDS_BROWSER"
"""Set where a missing browser is a failure: otherwise tests of pages are skipped without one."""
NAMES = ("chromium", "chromium-browser", "google-chrome")
SIZE = {"width": 1400, "height": 1000}


def chromium_path() -> str | None:
    """The browser that the system has, if any."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def require_chromium() -> None:
    """Skip a test where there is no browser, fail it where one was asked for."""
    found = chromium_path() is not None
    try:
        import playwright  # noqa: F401
    except ImportError:
        found = False
    if not found:
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(
            "tests of pages need playwright and Chromium; install requirements-dev.txt and Debian's chromium"
        )


@contextmanager
def chromium() -> Iterator:
    """A browser, started and ended."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Containers rarely give the rights that a sandbox needs, and little shared memory; only own pages are opened.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=options)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser, url: str, **options) -> Iterator:
    """A page in a context of its own; `page.seen` lists what it did that it should not have done.

    Args:
        browser: from `chromium`.
        url: where the page lies.
        options: of the context, such as `color_scheme`.
    """
    context = browser.new_context(**({"viewport": SIZE} | options))
    page = context.new_page()
    page.seen = watched(page, url)
    page.goto(url)
    try:
        yield page
    finally:
        context.close()


def watched(page, url: str) -> list[str]:
    """What the page says on the console, its errors, dialogs, and requests that leave it, as they come."""
    seen: list[str] = []
    scheme = url.split(":", 1)[0]
    allowed = (f"{scheme}:" if scheme == "file" else "/".join(url.split("/")[:3]), "data:", "blob:")
    page.on("console", lambda message: seen.append(f"console {message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    page.on("request", lambda request: request.url.startswith(allowed) or seen.append(f"request: {request.url}"))

    def refuse(dialog) -> None:
        seen.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("dialog", refuse)
    return seen


def wait_until(page, function: str, argument: object = None, timeout_seconds: float = 30.0) -> None:
    """Wait until a function of the page returns something true.

    Playwright's own waiting evaluates text inside the page, which the page's content security policy forbids.
    """
    ends = time.monotonic() + timeout_seconds
    while not page.evaluate(function, argument):
        assert time.monotonic() < ends, f"waited {timeout_seconds} s for {function} with {argument!r}"
        page.wait_for_timeout(10)


def to_uri(path: Path) -> str:
    """A file's address."""
    return path.resolve().as_uri()
