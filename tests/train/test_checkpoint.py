from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import torch

from picollm.run.errors import UserError
from picollm.train import checkpoint
from picollm.train.optim import OptimizerSettings, build_optimizer
from tests.train.conftest import small_model


def trained(seed: int = 1):
    model = small_model(seed)
    optimizer = build_optimizer(model, OptimizerSettings())
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    return model, optimizer


def test_what_comes_back_is_what_was_saved(tmp_path):
    model, optimizer = trained()
    info = checkpoint.save(tmp_path, 200, model, optimizer, {"tokenizer": "abc", "fingerprint": "f"})
    assert info.path == tmp_path / "step-000200"
    assert info.bytes == sum(f.stat().st_size for f in info.path.iterdir() if f.name != "manifest.json")
    assert checkpoint.latest(tmp_path) == info.path

    other, other_optimizer = trained(2)
    meta = checkpoint.load(info.path, other, other_optimizer)
    assert meta["step"] == 200 and meta["tokenizer"] == "abc"
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    for name, tensor in optimizer.state_dict().items():
        assert torch.equal(other_optimizer.state_dict()[name], tensor), name
    assert checkpoint.info(info.path).hash == info.hash


def test_a_model_can_be_built_from_its_checkpoint(tmp_path):
    model, _ = trained()
    info = checkpoint.save(tmp_path, 1, model, None, {"tokenizer": "abc"})
    again, meta = checkpoint.load_model(info.path, tokenizer_hash="abc")
    ids = torch.arange(8)[None]
    assert torch.equal(again(ids), model.eval()(ids))
    assert meta["shape"]["dim"] == 32
    with pytest.raises(UserError, match="another tokenizer"):
        checkpoint.load_model(info.path, tokenizer_hash="xyz")


def test_two_layers_of_an_earlier_format_are_refused(tmp_path):
    model = small_model()
    info = checkpoint.save(tmp_path, 1, model, None, {})
    meta = checkpoint.read_meta(info.path)
    assert meta["shape"]["depth"] == 2 and meta["format"] == checkpoint.FORMAT == 2
    for old, refused in (({}, True), ({"depth": 3}, False), ({"backout": False}, False)):
        changed = {**meta, "format": 1, "shape": {**meta["shape"], **old}}
        (info.path / "meta.json").write_bytes(msgspec.json.encode(changed))
        if refused:
            with pytest.raises(UserError, match="computed models of two layers otherwise: make its run's models again"):
                checkpoint.load(info.path, model)
        else:
            checkpoint.load(info.path, model)


def test_only_the_newest_are_kept(tmp_path):
    model, _ = trained()
    for step in (9, 10, 100, 20):
        checkpoint.save(tmp_path, step, model, None, {}, keep=checkpoint.Keep(last=2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000020", "step-000100"]
    checkpoint.save(tmp_path, 2_000_000, model, None, {}, keep=checkpoint.Keep(last=2))
    assert checkpoint.finished(tmp_path)[0].name == "step-2000000"


def test_saving_a_step_again_replaces_it(tmp_path):
    model, _ = trained()
    checkpoint.save(tmp_path, 5, model, None, {"note": "old"})
    checkpoint.save(tmp_path, 5, model, None, {"note": "new"})
    assert [p.name for p in tmp_path.iterdir()] == ["step-000005"]
    assert checkpoint.read_meta(tmp_path / "step-000005")["note"] == "new"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("name", "damage", "why"),
    [
        ("model.safetensors", cut, "bytes instead of"),
        ("model.safetensors", flip, "sha256"),
        ("optimizer.safetensors", Path.unlink, "missing"),
        ("manifest.json", Path.unlink, "no manifest"),
        ("manifest.json", cut, "unreadable"),
        ("meta.json", flip, "sha256"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_the_reason(tmp_path, name, damage, why):
    model, optimizer = trained()
    good = checkpoint.save(tmp_path, 1, model, optimizer, {}).path
    bad = checkpoint.save(tmp_path, 2, model, optimizer, {}).path
    damage(bad / name)
    said: list[str] = []
    assert checkpoint.latest(tmp_path, said.append) == good
    assert len(said) == 1 and "step-000002" in said[0] and why in said[0]


def test_nothing_there(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "missing") is None
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint.read_meta(tmp_path)


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    model, _ = trained()
    (tmp_path / ".saving-step-000007-1").mkdir()
    (tmp_path / ".saving-step-000007-1" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".removing-step-000001-1").mkdir()
    checkpoint.save(tmp_path, 8, model, None, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-000008"]


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    model, _ = trained()
    kept = checkpoint.save(tmp_path, 1, model, None, {}).path
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"no room .* MiB .* free some space"):
        checkpoint.save(tmp_path, 2, model, None, {})
    assert [p.name for p in tmp_path.iterdir()] == [kept.name]


def test_a_failed_write_leaves_the_last_one(tmp_path, monkeypatch):
    model, _ = trained()
    kept = checkpoint.save(tmp_path, 1, model, None, {}).path

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        checkpoint.save(tmp_path, 2, model, None, {})
    assert checkpoint.latest(tmp_path) == kept
    assert [p.name for p in tmp_path.iterdir()] == [kept.name]


def test_another_shape_is_refused(tmp_path):
    model, _ = trained()
    info = checkpoint.save(tmp_path, 1, model, None, {})
    meta = checkpoint.read_meta(info.path)
    meta["shape"]["depth"] = 3
    (info.path / "meta.json").write_bytes(msgspec.json.encode(meta))
    with pytest.raises(UserError, match="cannot load"):
        checkpoint.load_model(info.path)


def test_clearing(tmp_path):
    model, _ = trained()
    checkpoint.save(tmp_path, 1, model, None, {})
    checkpoint.clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


SAVER = """
import sys, torch
from pathlib import Path
from picollm.train import checkpoint
torch.set_num_threads(1)
model = torch.nn.Linear(700, 700)
print("ready", flush=True)
for step in range(1, 10**6):
    checkpoint.save(Path(sys.argv[1]), step, model, None, {}, keep=checkpoint.Keep(last=2))
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_kill_inside_a_save_loses_at_most_that_save(tmp_path):
    dice = random.Random(0)
    for trial in range(25):
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(dice.uniform(0.005, 0.12))
        os.kill(process.pid, signal.SIGKILL)
        reported = [int(line) for line in process.stdout.read().split()]
        process.wait()
        said: list[str] = []
        found = checkpoint.latest(tmp_path, said.append)
        assert said == [], f"trial {trial}: a half-written checkpoint has a final name"
        # Steps start anew in each trial, and what the first trial kept is still newer until a later one passes it.
        if reported:
            assert found is not None
            assert int(found.name.removeprefix("step-")) >= reported[-1]
    leftovers = [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    checkpoint.save(tmp_path, 10**7, torch.nn.Linear(2, 2), None, {})
    assert not any(p.exists() for p in leftovers)
