"""A Chromium without a window, driven over its DevTools protocol."""

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest
import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")


def find():
    """The browser's path; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)}")
    return found


def wait_for(question, seconds, what, every=0.2):
    """The first answer that is true; fails with the last answer after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, f"{what}: not after {seconds} s ({answer})"
        time.sleep(every)
    return answer


class Page:
    """One tab."""

    def __init__(self, address):
        self.socket, self.sent = websocket.create_connection(address, timeout=120, suppress_origin=True), 0

    def do(self, method, **parameters):
        """The result of a command of the protocol."""
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.sent:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def ask(self, expression):
        """The value of an expression of JavaScript."""
        answer = self.do("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector, text):
        """Press the mouse in the middle of the element with this text, once it is there."""
        middle = f"""(() => {{
            const all = [...document.querySelectorAll({json.dumps(selector)})];
            const box = all.find(one => one.textContent === {json.dumps(text)})?.getBoundingClientRect();
            return box?.width ? [box.x + box.width / 2, box.y + box.height / 2] : null;
        }})()"""
        x, y = wait_for(lambda: self.ask(middle), 60, f"{text!r} to click on")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.do("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def resize(self, width, height):
        """Set the size of the window, in pixels; they get smaller where the picture would be too high to be drawn."""
        scale = min(1, 16_000 / height)
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False)

    def keep(self, path):
        """Write what the window shows as a PNG file."""
        path.write_bytes(base64.b64decode(self.do("Page.captureScreenshot")["data"]))


class Browser:
    """A running browser whose profile is an empty folder."""

    def __init__(self, profile):
        command = [find(), *OPTIONS, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.port = Path(profile, "DevToolsActivePort")

    @contextlib.contextmanager
    def page(self, url):
        """A new tab at an address, closed afterwards."""
        wait_for(lambda: self.port.exists() and "\n" in self.port.read_text(), 60, "the browser's port")
        address = f"http://127.0.0.1:{self.port.read_text().split()[0]}/json"
        request = urllib.request.Request(f"{address}/new?{quote(url)}", method="PUT")
        with urllib.request.urlopen(request) as answer:
            tab = json.load(answer)
        try:
            yield Page(tab["webSocketDebuggerUrl"])
        finally:
            urllib.request.urlopen(f"{address}/close/{tab['id']}").close()

    def close(self):
        """End it."""
        self.process.terminate()
        self.process.wait(timeout=60)
