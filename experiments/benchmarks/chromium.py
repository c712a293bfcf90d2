"""A headless Chromium, driven over a pipe by the DevTools protocol: nothing to install but the browser.

The protocol is JSON between zero bytes, on the browser's file descriptors 3 (commands) and 4 (answers and events).
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


def find() -> str | None:
    """The browser's command; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """Sends commands and keeps the events that come in between; made by `browser`."""

    def __init__(self, commands: int, answers: int, patience: float):
        self.commands, self.answers, self.patience = commands, answers, patience
        self.number, self.pending, self.events = 0, b"", list[dict[str, Any]]()

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Sends a command and waits for its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self.number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def wait_for(self, method: str, session: str) -> dict[str, Any]:
        """Waits for an event that has not been asked for yet."""
        while True:
            for event in self.events:
                if event.get("method") == method and event.get("sessionId") == session:
                    self.events.remove(event)
                    return event["params"]
            self.events.append(self._read())

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + self.patience
        while b"\0" not in self.pending:
            ready, _, _ = select.select([self.answers], [], [], max(deadline - time.monotonic(), 0))
            chunk = os.read(self.answers, 1 << 20) if ready else b""
            if not chunk:
                raise TimeoutError("Chromium does not answer")
            self.pending += chunk
        message, self.pending = self.pending.split(b"\0", 1)
        return json.loads(message)


@contextlib.contextmanager
def browser(command: str, patience: float = 60.0) -> Iterator[Browser]:
    """Starts a browser with an empty profile, and ends it.

    Args:
        command: see `find`.
        patience: seconds to wait for an answer.
    """
    command_out, commands = os.pipe()
    answers, answer_in = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The shell moves the pipes to the descriptors where the browser looks for them.
        script = f'exec "$@" 3<&{command_out} 4>&{answer_in}'
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", command, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(command_out, answer_in), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(command_out)
        os.close(answer_in)
        try:
            found = Browser(commands, answers, patience)
            yield found
            found.send("Browser.close")
        finally:
            os.close(commands)
            os.close(answers)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Page:
    """A page in a tab of its own.

    Args:
        owner: the browser.
        path: the file to open.
        width: of the window, in CSS pixels; below 600 it is a phone's.
        height: the same.
        javascript: whether the page may run scripts.
    """

    def __init__(self, owner: Browser, path: Path, width: int = 1280, height: int = 900, javascript: bool = True):
        self.owner = owner
        self.target = owner.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = owner.send("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        phone = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.send("Emulation.setScriptExecutionDisabled", value=not javascript)
        self.send("Page.navigate", url=path.absolute().as_uri())
        owner.wait_for("Page.loadEventFired", self.session)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command to this page."""
        return self.owner.send(method, self.session, **params)

    def close(self) -> None:
        """Closes the tab."""
        self.owner.send("Target.closeTarget", targetId=self.target)

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression, in the page; a promise is waited for."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def screenshot(self) -> bytes:
        """What is in view, as PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot")["data"])

    def _params(self, method: str) -> list[dict[str, Any]]:
        return [
            event["params"] for event in self.owner.events
            if event.get("method") == method and event.get("sessionId") == self.session
        ]  # fmt: skip

    @property
    def messages(self) -> list[str]:
        """Errors and warnings of the console, and exceptions, so far."""
        logged = [str(each["entry"]) for each in self._params("Log.entryAdded")]
        called = [str(each) for each in self._params("Runtime.consoleAPICalled") if each["type"] != "log"]
        return logged + called + [str(each) for each in self._params("Runtime.exceptionThrown")]

    @property
    def requests(self) -> list[str]:
        """The addresses that were asked for, but for data that the page holds itself."""
        urls = [each["request"]["url"] for each in self._params("Network.requestWillBeSent")]
        return [url for url in urls if not url.startswith("data:")]

    def click(self, selector: str) -> None:
        """Clicks into the middle of an element with the mouse."""
        x, y = self.value(
            f"(() => {{ const element = document.querySelector({json.dumps(selector)});"
            " element.scrollIntoView({block: 'center', behavior: 'instant'});"
            " const box = element.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def milliseconds(self) -> dict[str, float]:
        """From the start of loading to the end of the load event, and to the first frame behind it."""
        return self.value(
            "new Promise(done => requestAnimationFrame(() => setTimeout(() => done({"
            "load: performance.getEntriesByType('navigation')[0].loadEventEnd, drawn: performance.now()}))))"
        )
