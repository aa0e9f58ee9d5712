"""A headless Chromium, driven over the DevTools protocol through a pipe: nothing but the browser is needed."""

from __future__ import annotations

import base64
import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
         "--remote-debugging-pipe"]  # fmt: skip
# Chromium reads commands from descriptor 3 and writes to 4, each message ended by a zero byte.
SHIM = (
    "import os, sys; r, w = map(int, sys.argv[1:3]); os.dup2(r, 3); os.dup2(w, 4); os.execv(sys.argv[3], sys.argv[3:])"
)
PATIENCE_S = 90.0


class Page:
    """One page. Use as a context manager; `errors`: uncaught exceptions and errors in the console."""

    def __init__(self, address: str, *, width: int = 1200, height: int = 800, dark: bool = False) -> None:
        assert CHROMIUM is not None
        self.errors: list[str] = []
        self._folder = tempfile.TemporaryDirectory(prefix="chromium")
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        for fd in (theirs_in, theirs_out):  # not 3 or 4, which the shim is about to overwrite
            os.set_inheritable(fd, True)
        spare_in, spare_out = os.dup(theirs_in), os.dup(theirs_out)
        while min(spare_in, spare_out) <= 4:
            spare_in, spare_out = os.dup(spare_in), os.dup(spare_out)
        argv = [sys.executable, "-c", SHIM, str(spare_in), str(spare_out), CHROMIUM, *FLAGS,
                f"--user-data-dir={self._folder.name}", "about:blank"]  # fmt: skip
        self._process = subprocess.Popen(argv, pass_fds=(spare_in, spare_out), stdin=subprocess.DEVNULL,
                                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        for fd in {theirs_in, theirs_out, spare_in, spare_out}:
            os.close(fd)
        self._out, self._in = os.fdopen(ours_out, "wb", 0), os.fdopen(ours_in, "rb", 0)
        self._numbers, self._answers = itertools.count(1), queue.Queue[dict[str, Any]]()
        threading.Thread(target=self._listen, daemon=True).start()
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.open(address)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._out.close()
        shutil.rmtree(self._folder.name, ignore_errors=True)

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are waited for. Raises RuntimeError with what it threw."""
        got = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in got:
            raise RuntimeError(got["exceptionDetails"].get("exception", {}).get("description", "it threw"))
        return got["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE_S
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < end, f"waited in vain for {script}; errors: {self.errors}"
            time.sleep(0.03)

    def press(self, key: str, code: str, modifiers: int = 0, text: str = "") -> None:
        """One key. modifiers: 1 Alt, 2 Ctrl, 8 Shift."""
        virtual = {"Enter": 13, "Escape": 27, "ArrowUp": 38, "Tab": 9}.get(key, ord(key.upper()[0]))
        how = {"key": key, "code": code, "modifiers": modifiers, "windowsVirtualKeyCode": virtual}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **how)
        self.call("Input.dispatchKeyEvent", type="keyUp", **how)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def enter(self, text: str) -> None:
        """Write into the prompt and send."""
        self.run("document.getElementById('prompt').focus()")
        self.type(text)
        self.press("Enter", "Enter", text="\r")

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        answer = self._answers.get(timeout=PATIENCE_S)
        assert answer["id"] == number and "error" not in answer, answer
        return answer["result"]

    def _listen(self) -> None:
        held = b""
        while data := self._in.read(65536):
            *messages, held = (held + data).split(b"\0")
            for text in messages:
                message = json.loads(text)
                if "id" in message:
                    self._answers.put(message)
                elif message["method"] == "Runtime.exceptionThrown":
                    details = message["params"]["exceptionDetails"]
                    self.errors.append(details.get("exception", {}).get("description", details["text"]))
                elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                    entry = message["params"]["entry"]
                    self.errors.append(f"{entry['text']} {entry.get('url', '')}")
        self._in.close()
