"""What every test is kept to: no network, its own folders, no settings from the environment, modest threads.

Set before anything is imported, so that the processes a test starts are kept to it too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

for name in [name for name in os.environ if re.fullmatch(r"PICOLLM_.*__.*", name)]:
    del os.environ[name]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A loaded machine is slow, which is no reason for a property to be false.
hypothesis.settings.register_profile(
    "picollm",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
hypothesis.settings.load_profile("picollm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A slow test without a limit of its own may take three times as long as others: beside other work it does."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`PICOLLM_HOME` and `PICOLLM_RUNS` in a temporary folder: no test touches the person's cache or runs."""
    root = tmp_path_factory.mktemp("picollm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PICOLLM_HOME", str(root / "home"))
        patch.setenv("PICOLLM_RUNS", str(root / "runs"))
        yield root


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of fixture run, written once; tests work on copies."""
    from tests.fixtures import make_runs

    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PICOLLM_RUNS", str(folder))
        for kind in make_runs.KINDS:
            make_runs.make(folder, kind)
    return folder
