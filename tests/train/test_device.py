from __future__ import annotations

import os

import pytest
import torch

from picollm.run.errors import UserError
from picollm.train import device


@pytest.fixture
def clean_environment(monkeypatch, tmp_path):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    for name in names:
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("PICOLLM_HOME", str(tmp_path))
    return monkeypatch


def test_cpu_by_name_and_unknown_devices():
    assert device.pick_device("cpu").type == "cpu"
    assert device.pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UserError, match="not available here"):
        device.pick_device("tpu")


def test_start_sets_threads_determinism_and_the_cache(clean_environment, tmp_path):
    ranks = device.start("cpu", threads=1)
    assert (ranks.device.type, ranks.rank, ranks.world) == ("cpu", 0, 1)
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    cache = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    assert cache.startswith(str(tmp_path)) and cache.endswith("threads1")
    device.start("cpu", threads=1, deterministic="off")
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_cores_are_divided_between_local_ranks(clean_environment):
    clean_environment.setenv("LOCAL_WORLD_SIZE", "2")
    device.start("cpu", threads=2)
    assert torch.get_num_threads() == 1


def test_one_rank_needs_no_exchange():
    ranks = device.Ranks(torch.device("cpu"))
    assert ranks.sum(torch.tensor([1.0, 2.0])).tolist() == [1, 2]
    assert ranks.share("x") == "x"
    assert ranks.any(True) and not ranks.any(False)
    ranks.close()


def test_precision_names():
    assert device.dtype_of("bf16") is torch.bfloat16
    with pytest.raises(UserError, match="fp8"):
        device.dtype_of("fp8")


def test_peak_is_a_positive_rate():
    assert 0 < device.gemm_peak(torch.float32, torch.device("cpu"), seconds=0.02, size=128) < float("inf")
    assert device.peak_memory(torch.device("cpu")) > 2**20
    assert device.usable_cpus() >= 1
