"""What a run takes: the plan of every profile for a machine that is not here, word for word, and the sums behind it.

`PICOLLM_WRITE_GOLDEN=1 pytest tests/run/test_estimate.py` writes the files of `plans/` anew, to be read and committed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from picollm import cli
from picollm.run import config, estimate, gpus, plan, scaling
from picollm.run.errors import UserError
from picollm.tasks import conversations

PLANS = Path(__file__).parent / "plans"
GOLDEN = {
    "pocket": ("cpu", 1),
    "pocket-plus": ("cpu", 1),
    "smoke": ("cpu", 1),
    "workshop": ("rtx3060", 1),
    "single-gpu": ("h100", 1),
    "speedrun": ("h100", 8),
}


def test_every_profile_has_a_plan_to_read() -> None:
    assert set(GOLDEN) == set(config.profile_names())


@pytest.mark.parametrize("profile", GOLDEN)
def test_the_plan_of_a_profile(
    profile: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICOLLM_RUNS", str(tmp_path / "runs"))
    gpu, count = GOLDEN[profile]
    assert cli.invoke(["plan", "--profile", profile, "--gpu", gpu, "--count", str(count)]) == 0
    text = capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    file = PLANS / f"{profile}.txt"
    if os.environ.get("PICOLLM_WRITE_GOLDEN"):
        PLANS.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


def test_conversations_that_are_kept_rendered_are_counted() -> None:
    mixture = "sft.mixture={ smoltalk = 460000, gsm8k = 7473 }"
    found = estimate.conversation_bytes(config.load("single-gpu", sets=[mixture, "midtrain.mixture={}"], environ={}))
    assert 0.6e9 < found < 1.1e9, "SmolTalk takes 0.7 GB"
    assert estimate.RENDERED_FROM == conversations.LARGE
    assert estimate.conversation_bytes(config.load("pocket", environ={})) == 0


@pytest.mark.parametrize("name", gpus.GPUS)
@pytest.mark.parametrize("profile", ["workshop", "single-gpu"])
def test_every_gpu_of_the_table_can_be_planned_for(profile: str, name: str) -> None:
    found = estimate.assumed(config.load(profile, environ={}), name, 2)
    assert found.memory["total"] <= found.free and found.rows["device"] >= 1 and found.eta_s > 0
    assert found.micro_batches * found.rows["device"] * 2 >= found.rows["pretrain"]
    assert (found.cost or 0) == pytest.approx(2 * gpus.GPUS[name].price * found.eta_s / 3600)


def test_the_dial_alone_decides_where_there_is_no_budget() -> None:
    """The published table of the recipe: batch, steps at ratio 12 and 8."""
    for depth, batch, steps in ((12, 2**19, 2520), (20, 2**20, 4980)):
        found = estimate.assumed(config.load("single-gpu", sets=[f"model.depth={depth}"], environ={}), "h200", 8)
        assert found.rows["pretrain"] * 2048 == batch and found.steps["pretrain"] == steps
        assert found.tokens["pretrain"] == pytest.approx(12 * found.params["scaling"], rel=1e-3)
    fast = estimate.assumed(config.load("speedrun", environ={}), "h100", 8)
    assert fast.steps["pretrain"] == 5568 and fast.how.fp8


def test_learning_rates_and_decay_follow_from_depth() -> None:
    """The published table: learning rates × √(B / 2^19), decay 0.28·√(B / 2^19)·D₁₂ / D."""
    for depth, factor, decay in ((4, 0.707, 1.89), (12, 1.0, 0.280), (24, 1.414, 0.0597)):
        found = estimate.assumed(config.load("single-gpu", sets=[f"model.depth={depth}"], environ={}), "h200", 1)
        assert found.rates["matrices"] == pytest.approx(0.02 * factor, rel=1e-3)
        assert found.rates["wte"] == pytest.approx(0.3 * factor * (found.shape.dim / 768) ** -0.5, rel=1e-3)
        assert found.rates["weight decay"] == pytest.approx(decay, rel=5e-3)
    fixed = estimate.assumed(config.load("pocket", environ={}), "cpu", 1)
    assert fixed.rates["matrices"] == 0.03 and fixed.rates["weight decay"] == 0.1


def test_published_speeds_are_met_where_they_were_published() -> None:
    one = estimate.assumed(config.load("single-gpu", environ={}), "h100", 1)
    assert 450e3 < one.tok_s < 549e3 and not one.how.fp8
    eight = estimate.assumed(config.load("speedrun", environ={}), "h100", 8)
    assert eight.tok_s == pytest.approx(8 * 123e3, rel=0.1)
    small = estimate.assumed(config.load("single-gpu", environ={}), "rtx4070", 1)
    assert small.tok_s == pytest.approx(55.7e3, rel=0.02)


def test_a_price_of_ones_own_and_more_gpus_are_faster() -> None:
    wishes = config.load("speedrun", environ={})
    one, two = (estimate.assumed(wishes, "h200", count, price=2.0) for count in (4, 8))
    assert two.eta_s < one.eta_s and one.cost == pytest.approx(8.0 * one.eta_s / 3600)
    assert estimate.assumed(wishes, "h200", 8, price=0.0).cost is None


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7])
def test_any_number_of_gpus(count: int) -> None:
    found = estimate.assumed(config.load("speedrun", environ={}), "h200", count)
    assert count * found.micro_batches * found.rows["device"] >= 512 == found.rows["pretrain"]
    assert found.steps["pretrain"] == 5568


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--gpu", "h1000"], "unknown GPU 'h1000': expected one of b200"),
        (["--gpu", "h100", "--count", "0"], "--count is 0"),
        (["--gpu", "h100", "--set", "run.minutes=0"], "model.depth and run.minutes are both 0"),
        (["--gpu", "h100", "--set", "run.minutes=0", "--set", "model.depth=4"], "rl.steps and run.minutes are both 0"),
        (["--gpu", "rtx3060", "--profile", "speedrun"], "lower model.depth"),
    ],
)
def test_mistakes_are_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["plan", *words]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_data_from_the_hub_arrives_while_training_goes_on() -> None:
    wishes = config.load("speedrun", environ={})
    found = estimate.assumed(wishes, "h100", 8)
    preparing = found.seconds["dataset"] + found.seconds["tokenizer"]
    assert sum(found.seconds.values()) - preparing < found.eta_s < sum(found.seconds.values())
    own = estimate.assumed(config.load("pocket", environ={}), "cpu", 1)
    assert own.eta_s == pytest.approx(sum(own.seconds.values()))


def test_a_mixture_is_passed_once() -> None:
    wishes = config.load("single-gpu", environ={})
    found = estimate.assumed(wishes, "h100", 1)
    assert found.tokens["sft"] == pytest.approx(plan.mixture_tokens(wishes, "sft"), rel=0.02)


def test_width_raises_the_share_of_the_peak() -> None:
    shares = [gpus.mfu(gpus.gpu("h100"), dim) for dim in (256, 768, 1536, 4096)]
    assert shares == sorted(shares) and shares[1] == pytest.approx(0.41)
    assert scaling.shape_for(12, 32768, 2048).dim == 768
    with pytest.raises(UserError, match="unknown GPU"):
        gpus.gpu("abacus")
