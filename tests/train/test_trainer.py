from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from picollm.run.errors import StopRequested, UserError
from picollm.train import checkpoint
from picollm.train.batch import Batch
from picollm.train.device import Ranks, set_deterministic
from picollm.train.loop import Every
from picollm.train.schedule import Schedule
from picollm.train.step import Compute
from picollm.train.trainer import TrainSettings, train_stage
from tests.train.conftest import ROWS, FakeContext, T, counting_batches, small_model

META = {"fingerprint": "f", "tokenizer": "t"}
CPU = Ranks(torch.device("cpu"))
STEPS = 12


def train(folder: Path, ctx: FakeContext | None = None, *, steps: int = STEPS, meta=META, batches=counting_batches,
          init_from=None, precision="fp32", compiled=False, fp8=False, model=None, evals=(),
          at_checkpoint=lambda step: None, **settings):  # fmt: skip
    compute = Compute(precision, "explicit", compiled, fp8=fp8)
    chosen = TrainSettings(Schedule(steps, warmup=3), compute=compute, **{"save_every": 0.0, **settings})
    return train_stage(
        ctx or FakeContext(), model=model or small_model(), batches=batches, settings=chosen, checkpoint_dir=folder,
        meta=meta, ranks=CPU, init_from=init_from, evals=evals, at_checkpoint=at_checkpoint,
    )  # fmt: skip


def same_files(a: Path, b: Path) -> None:
    for name in ("model.safetensors", "optimizer.safetensors"):
        left, right = load_file(a / name), load_file(b / name)
        assert left.keys() == right.keys()
        for key, tensor in left.items():
            assert torch.equal(tensor, right[key]), f"{name}: {key}"


def test_a_stage_from_beginning_to_end(tmp_path):
    ctx, looked = FakeContext(), []
    summary = train(tmp_path, ctx, save_steps=5, at_checkpoint=looked.append)
    assert looked == [5, 10, 12]
    assert summary.step == STEPS and summary.resumed_from == 0
    assert [args[0] for args in ctx.of("checkpoint")] == [5, 10, 12]
    assert summary.checkpoint == tmp_path / "step-000012"
    assert summary.hash == checkpoint.info(summary.checkpoint).hash
    assert [args[0] for args in ctx.of("phase")] == ["load", "train", "save"]
    assert len(ctx.losses()) == STEPS and ctx.losses()[-1] < ctx.losses()[0]
    assert ctx.of("resumed") == [(0,)]
    step, values = ctx.of("metrics")[-1]
    assert step == STEPS
    assert values.keys() >= {"loss", "lr", "grad_norm", "tok_s", "mfu", "step_s"}
    assert ctx.of("progress")[-1] == (STEPS, STEPS)
    assert checkpoint.read_meta(summary.checkpoint)["stage"] == "pretrain"


@pytest.mark.parametrize(("precision", "fp8"), [("fp32", False), ("bf16", False), ("bf16", True)])
def test_stopped_and_resumed_equals_undisturbed_bit_for_bit(tmp_path, precision, fp8):
    whole = train(tmp_path / "whole", precision=precision, fp8=fp8)
    with pytest.raises(StopRequested) as stopped:
        train(tmp_path / "parts", FakeContext(stop_at=5), precision=precision, fp8=fp8)
    assert stopped.value.step == 5
    ctx = FakeContext()
    rest = train(tmp_path / "parts", ctx, precision=precision, fp8=fp8, model=small_model(seed=99))
    assert rest.resumed_from == 5
    assert ctx.of("resumed") == [(5, "step-000005")]
    same_files(whole.checkpoint, rest.checkpoint)
    assert whole.hash == rest.hash
    assert rest.tokens == whole.tokens == STEPS * ROWS * T


def test_evaluating_and_saving_on_the_way_changes_nothing(tmp_path):
    quiet = train(tmp_path / "a")
    seen = []
    busy = train(tmp_path / "b", evals=[Every(2, seen.append)], save_steps=3)
    assert seen == [2, 4, 6, 8, 10, 12]
    assert quiet.hash == busy.hash


def test_batches_made_ahead_change_nothing_and_a_stop_among_them_is_a_stop(tmp_path):
    def stopping(step):
        if step == 7:
            raise StopRequested(step)
        return counting_batches(step)

    whole = train(tmp_path / "whole")
    with pytest.raises(StopRequested) as stopped:
        train(tmp_path / "parts", batches=stopping, ahead=2)
    assert stopped.value.step == 7
    assert train(tmp_path / "parts", ahead=2).hash == whole.hash


@pytest.mark.parametrize("at", [0, 6, STEPS])
def test_stopped_in_a_reading_it_is_made_again_and_nothing_is_lost(tmp_path, at):
    whole = train(tmp_path / "whole")

    def left(step):
        if step == at:
            raise StopRequested(step)

    with pytest.raises(StopRequested) as stopped:
        train(tmp_path / "parts", evals=[Every(3, left, at_start=True)])
    assert stopped.value.step == at and checkpoint.latest(tmp_path / "parts").name == f"step-{at:06d}"
    seen = []
    rest = train(tmp_path / "parts", evals=[Every(3, seen.append, at_start=True)])
    assert seen == list(range(at, STEPS + 1, 3))
    assert rest.resumed_from == at and rest.hash == whole.hash


def test_the_best_reading_on_the_way_is_kept(tmp_path):
    readings = {2: 2.0, 4: 1.0, 6: 3.0}
    settings = {"save_steps": 2, "keep": checkpoint.Keep(1, best=True)}
    with pytest.raises(StopRequested):
        train(tmp_path, FakeContext(stop_at=7), evals=[Every(2, readings.get, at_end=False)], **settings)
    assert [path.name for path in checkpoint.finished(tmp_path)] == ["step-000007", "step-000004"]
    # Nothing is read any more: what was known at step 7 goes on.
    train(tmp_path, **settings)
    assert [path.name for path in checkpoint.finished(tmp_path)] == ["step-000012", "step-000004"]
    assert checkpoint.read_meta(tmp_path / "step-000012")["score"] == 3.0


def test_a_changed_setting_is_not_resumed_silently(tmp_path):
    with pytest.raises(StopRequested):
        train(tmp_path, FakeContext(stop_at=4))
    with pytest.raises(UserError, match=r"other settings.*--fresh"):
        train(tmp_path, meta={**META, "fingerprint": "g"})
    with pytest.raises(UserError, match="another tokenizer"):
        train(tmp_path, meta={**META, "tokenizer": "u"})
    again = train(tmp_path, meta={**META, "fingerprint": "g"}, fresh=True)
    assert again.resumed_from == 0
    assert [p.name for p in tmp_path.iterdir()] == ["step-000012"]


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path):
    whole = train(tmp_path / "whole")
    with pytest.raises(StopRequested):
        train(tmp_path / "parts", FakeContext(stop_at=9), save_steps=4)
    newest = checkpoint.latest(tmp_path / "parts")
    assert newest is not None and newest.name == "step-000009"
    (newest / "model.safetensors").write_bytes(b"")
    ctx = FakeContext()
    rest = train(tmp_path / "parts", ctx)
    assert rest.resumed_from == 8
    assert any("step-000009" in args[0] for args in ctx.of("warning"))
    assert rest.hash == whole.hash


def test_a_finished_stage_started_again_has_nothing_to_do(tmp_path):
    first = train(tmp_path)
    before = {file: file.stat().st_ino for file in first.checkpoint.iterdir()}
    ctx = FakeContext()
    again = train(tmp_path, ctx)
    assert again.resumed_from == STEPS and again.hash == first.hash
    assert (again.loss, again.tokens, again.tok_s) == (first.loss, first.tokens, first.tok_s)
    assert {file: file.stat().st_ino for file in first.checkpoint.iterdir()} == before and not ctx.of("checkpoint")


def test_a_damaged_last_checkpoint_is_not_kept(tmp_path):
    whole = train(tmp_path, save_steps=11)
    (whole.checkpoint / "model.safetensors").write_bytes(b"")
    again = train(tmp_path)
    assert again.resumed_from == 11 and again.hash == whole.hash
    assert checkpoint.problem(again.checkpoint) is None


def test_beginning_from_a_parent(tmp_path):
    parent = train(tmp_path / "base")
    child = train(tmp_path / "mid", init_from=parent.checkpoint, model=small_model(seed=7), steps=1)
    with_moments = train(
        tmp_path / "sft", init_from=parent.checkpoint, model=small_model(seed=7), steps=1, reuse_moments=True
    )
    assert child.hash != with_moments.hash
    ctx = FakeContext()
    train(tmp_path / "more", ctx, init_from=parent.checkpoint, model=small_model(seed=7))
    scratch = FakeContext()
    train(tmp_path / "scratch", scratch, model=small_model(seed=7))
    assert ctx.losses()[0] < 0.8 * scratch.losses()[0]


def test_a_parent_with_another_tokenizer_or_damage_is_refused(tmp_path):
    parent = train(tmp_path / "base").checkpoint
    with pytest.raises(UserError, match="another tokenizer"):
        train(tmp_path / "mid", init_from=parent, meta={**META, "tokenizer": "u"})
    (parent / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="cannot start from"):
        train(tmp_path / "mid", init_from=parent)


def exploding(step: int):
    for batch in counting_batches(step):
        weights = torch.full(batch.targets.shape, float("inf") if step >= 6 else 1.0)
        yield Batch(batch.inputs, batch.targets, weights, batch.denom)


def test_a_loss_that_stays_non_finite_fails_with_the_last_good_checkpoint(tmp_path):
    ctx = FakeContext()
    with pytest.raises(UserError, match=r"begins in the loss.*step-000005 is kept.*lower the learning rate"):
        train(tmp_path, ctx, batches=exploding, save_steps=5, patience=3)
    assert len([args for args in ctx.of("warning") if "skipped" in args[0]]) == 3
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000005"
    assert all(torch.isfinite(t).all() for t in load_file(tmp_path / "step-000005" / "model.safetensors").values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    model = small_model()

    def spoil(step: int) -> None:
        if step == 6:
            with torch.no_grad():
                model.blocks[0].attn.q.weight[0, 0] = float("nan")

    with pytest.raises(UserError, match=r"q\.weight is not finite after step 6"):
        train(tmp_path, model=model, evals=[Every(1, spoil)], save_steps=3)
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000003"


KILLED = """
import os, signal, sys, time
from pathlib import Path
from tests.train import test_trainer as t
from tests.train.conftest import counting_batches
from picollm.train.device import set_deterministic
import torch
torch.set_num_threads(int(sys.argv[5])); set_deterministic(True)
def batches(step):
    if step == int(sys.argv[3]):
        # saves are written beside the training: die once that of step 6 stands
        deadline = time.monotonic() + 60
        while not (Path(sys.argv[1]) / "step-000006").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return counting_batches(step)
t.train(Path(sys.argv[1]), batches=batches, save_steps=3, precision=sys.argv[2], compiled=sys.argv[4] == "compiled")
"""


def killed_then_resumed(tmp_path: Path, precision: str, kind: str) -> None:
    whole = train(tmp_path / "whole", precision=precision, compiled=kind == "compiled")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "parts"), precision, "8", kind]
    command.append(str(torch.get_num_threads()))
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=dict(os.environ), capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    rest = train(tmp_path / "parts", precision=precision, compiled=kind == "compiled")
    assert rest.resumed_from == 6
    same_files(whole.checkpoint, rest.checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_and_resumed_equals_undisturbed_bit_for_bit(tmp_path, precision):
    killed_then_resumed(tmp_path, precision, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_when_compiled(tmp_path, precision, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch.set_num_threads(2)  # where compiled code would differ from run to run if it were not deterministic
    set_deterministic(True)
    killed_then_resumed(tmp_path, precision, "compiled")


RANKED = """
import os, sys
from pathlib import Path
import torch
from tests.train.conftest import FakeContext, counting_rows, small_model, ROWS, T
from picollm.train.batch import Batch
from picollm.train.device import start
from picollm.train.optim import OptimizerSettings
from picollm.train.schedule import Schedule
from picollm.train.trainer import TrainSettings, train_stage
from picollm.run.errors import StopRequested
ranks = start("cpu", threads=1)
def batches(step):
    inputs, targets = counting_rows(step)
    mine = slice(ranks.rank * ROWS // ranks.world, (ranks.rank + 1) * ROWS // ranks.world)
    yield Batch(inputs[mine].contiguous(), targets[mine].contiguous(), None, float(ROWS * T))
def say(line):
    os.write(1, f"{line}\\n".encode())  # one write: the ranks share the pipe
# Only one rank sees the stop: the others must come along.
ctx = FakeContext(stop_at=int(sys.argv[2]) if ranks.rank == ranks.world - 1 and int(sys.argv[2]) else None)
try:
    settings = TrainSettings(Schedule(8, warmup=2), OptimizerSettings().scaled(0.1))
    train_stage(ctx, model=small_model(), batches=batches, settings=settings, checkpoint_dir=Path(sys.argv[1]),
                meta={"fingerprint": "f", "tokenizer": "t"}, ranks=ranks)
except StopRequested as stop:
    say(f"stopped {stop.step}")
ranks.gather(None)  # rank 0 speaks last
if ranks.rank == 0:
    say(" ".join(map(str, ["losses", *ctx.losses()])))
ranks.close()
"""


def ranked(folder: Path, world: int, stop_at: int = 0) -> list[str]:
    script = folder.parent / "ranked.py"
    script.write_text(RANKED)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(folder), str(stop_at)], cwd=root, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": root}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.slow
def test_two_ranks_train_like_one(tmp_path):
    one, two = ranked(tmp_path / "one", 1), ranked(tmp_path / "two", 2)
    losses = [[float(x) for x in lines[-1].split()[1:]] for lines in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    a, b = (load_file(tmp_path / name / "step-000008" / "model.safetensors") for name in ("one", "two"))
    for key, tensor in a.items():
        # Muon turns the smallest difference in a weak direction into a visible one, so whole tensors are compared.
        assert (b[key] - tensor).norm() <= 1e-2 * tensor.norm() + 1e-3, key


@pytest.mark.slow
def test_ranks_agree_to_stop_and_another_world_size_resumes(tmp_path):
    lines = ranked(tmp_path / "run", 2, stop_at=3)
    assert lines.count("stopped 3") == 2
    rest = ranked(tmp_path / "run", 1)
    assert len(rest[-1].split()) == 1 + 5
    assert checkpoint.latest(tmp_path / "run") == tmp_path / "run" / "step-000008"


def test_settings_are_plain_values():
    settings = TrainSettings(Schedule(3))
    assert replace(settings, keep=checkpoint.Keep(5)).schedule.steps == 3
