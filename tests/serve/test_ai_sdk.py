"""The JavaScript of docs/serving.md, run as it stands there, with the AI SDK from Node.

Skipped where Node or the packages are missing. To have them: `npm install ai @ai-sdk/openai-compatible` anywhere, and
name that folder's node_modules in PICOLLM_NODE_MODULES, or have it in the checkout.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from picollm.serve.api import ModelHub
from tests.infer.fakes import scripted_engine
from tests.serve.running import Running

ROOT = Path(__file__).resolve().parents[2]
MODULES = Path(os.environ.get("PICOLLM_NODE_MODULES", ROOT / "node_modules"))
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(
    NODE is None or not all((MODULES / name).is_dir() for name in ("ai", "@ai-sdk/openai-compatible")),
    reason="no Node with ai and @ai-sdk/openai-compatible here",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    hub = ModelHub()
    hub.add("sft", scripted_engine("It is 42 ☃.".encode(), prompt_tokens=6), stage="sft")
    running = Running(hub, tmp_path_factory.mktemp("s"))
    yield running
    running.end()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the scripts of the documentation and the installed packages."""
    (tmp_path / "node_modules").symlink_to(MODULES)
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    for name, code in re.findall(r"```js\n// (\w+\.mjs)\n(.*?)```", text, re.S):
        (tmp_path / name).write_text(code, encoding="utf-8")
    return tmp_path


def environment(server: Running) -> dict[str, str]:
    return os.environ | {"PICOLLM_URL": f"{server.tcp}/v1", "PICOLLM_TOKEN": "secret", "PORT": "0"}


def test_whole_and_streamed(server: Running, folder: Path) -> None:
    assert NODE
    done = subprocess.run([NODE, "ask.mjs"], cwd=folder, env=environment(server), capture_output=True, text=True,
                          timeout=240)  # fmt: skip
    assert done.returncode == 0, done.stderr
    whole, streamed = (json.loads(line) for line in done.stdout.splitlines())
    assert whole["text"] == streamed["text"] == "It is 42 ☃." and whole["finish"] == streamed["finish"] == "stop"
    assert whole["usage"]["inputTokens"] == streamed["usage"]["inputTokens"] == 6
    assert whole["usage"]["outputTokens"] == streamed["usage"]["outputTokens"] > 10


def test_the_frontend(server: Running, folder: Path) -> None:
    assert NODE
    process = subprocess.Popen([NODE, "frontend.mjs"], cwd=folder, env=environment(server), text=True,
                               stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert "<form>" in httpx.get(address, timeout=60).text
        answer = httpx.post(f"{address}/ask", json=[{"role": "user", "content": "hi"}], timeout=60)
        assert answer.text == "It is 42 ☃."
        refused = httpx.post(f"{address}/ask", json=[{"role": "user", "content": "z" * 500}], timeout=60)
        assert "shorten it" in refused.text
    finally:
        process.kill()
        process.wait()
