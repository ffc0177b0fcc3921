"""A browser without a window, for what people look at in one."""

import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--enable-logging=stderr",
]

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium found")


def open_page(page: Path, profile: Path, width: int = 1280) -> tuple[str, str]:
    """The page's elements once it is loaded, and what the browser had to say.

    Args:
        page: file that is opened.
        profile: folder that the browser may fill.
        width: of the window, in pixels.
    """
    assert BROWSER is not None
    own = [f"--user-data-dir={profile}", f"--window-size={width},900"]
    command = [BROWSER, *FLAGS, *own, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    return done.stdout, done.stderr
