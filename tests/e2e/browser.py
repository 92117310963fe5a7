"""A real Chromium without a window, driven over its DevTools pipe: no server, no port, no further package."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--font-render-hinting=none",
    "--remote-debugging-pipe",
)
SECONDS = 60.0


class Page:
    """One page; what it complained about and what it asked the network for is kept.

    Attributes:
        complaints: console messages, exceptions and log entries.
        requests: addresses that it loaded.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self.commands, self.answers = commands, answers
        self.session: str | None = None
        self.number = 0
        self.rest = b""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.loaded = 0
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])

    def open(self, file: Path, width: int, *, dark: bool = False) -> None:
        """Show a file, ``width`` CSS pixels wide."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        before = self.loaded
        self.ask("Page.navigate", url=file.resolve().as_uri())
        end = time.monotonic() + SECONDS
        while self.loaded == before:
            assert time.monotonic() < end, "the page did not load"
            self._next()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self, file: Path, clip: dict[str, float] | None = None) -> None:
        """The whole page, or ``clip`` of it (x, y, width, height), as PNG."""
        area = {} if clip is None else {"clip": {**clip, "scale": 1}}
        found = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, **area)
        file.write_bytes(base64.b64decode(found["data"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            self.rest += (read := os.read(self.answers, 1 << 20))
            assert read, "Chromium is gone"
        line, _, self.rest = self.rest.partition(b"\0")
        message = dict(json.loads(line))
        method, params = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self.loaded += 1
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method in (
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
            "Network.loadingFailed",
        ):
            self.complaints.append(json.dumps(params))
        return message


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A Chromium with a fresh profile; skips where none is installed."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("needs Chromium (Debian: chromium)")
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()
    # It reads file descriptor 3 and writes 4, whatever numbers the pipes have here.
    shell = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", shell, "-", str(command_read), str(answer_write), program, f"--user-data-dir={profile}", *FLAGS],
        pass_fds=(command_read, answer_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(command_read)
    os.close(answer_write)
    try:
        yield Page(command_write, answer_read)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, 9)
        process.wait()
        os.close(command_write)
        os.close(answer_read)
