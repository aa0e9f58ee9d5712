"""RL as a stage: what it reports, that ranks and a kill change nothing of it, and what it refuses."""

from __future__ import annotations

import pytest

from picollm.run import event_file
from picollm.run import events as ev
from picollm.run.folder import Run
from picollm.run.history import StageHistory
from tests.stages.conftest import WAIT_S, Workplace, step_of, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SETTINGS = ["rl.steps=6", "rl.eval_every=3", "rl.eval_items=24", "rl.pass_items=10", "rl.questions=4"]
CURVES = ("reward", "reward_std", "solved", "useful", "tokens", "ended", "nll", "entropy", "lr")


def readings(run: Run) -> list[tuple[str, int, dict[str, float | None], int | None]]:
    """Name, step, values, n; of a reading that was made again, the later one."""
    found = {(event.step, event.name): event for event in StageHistory(run, "rl").read_all().evals}
    return [(event.name, event.step, event.values, event.n) for _, event in sorted(found.items())]


@pytest.fixture(scope="module")
def undisturbed(workplace: Workplace, smoke: Run) -> Run:
    run = workplace.copy(smoke, "rl-undisturbed")
    run.set(SETTINGS)
    assert workplace.launch(run, "rl", fresh=True).wait(WAIT_S) == 0
    return run


def test_readings_curves_rollouts_and_result(undisturbed: Run) -> None:
    history = StageHistory(undisturbed, "rl").read_all()
    assert [(name, step, n) for name, step, _, n in readings(undisturbed)] == [
        (name, step, n) for step in (0, 3, 6) for name, n in (("heldout", 24), ("sampled", 10))
    ]
    sampled = next(values for name, _, values, _ in readings(undisturbed) if name == "sampled")
    rates = [sampled[f"pass_at_{k}"] or 0.0 for k in (1, 2, 4, 8)]
    assert rates == sorted(rates) and rates[0] >= 0 and rates[-1] <= 1
    for curve in CURVES:
        assert history.series[curve].steps == list(range(1, 7)), curve
    assert history.series["entropy"].values[0] > 1
    rates_of_learning = history.series["lr"].values
    assert rates_of_learning[0] == 1.0 and rates_of_learning == sorted(rates_of_learning, reverse=True)
    assert rates_of_learning[3] == pytest.approx(0.5), "half a cosine"
    assert {sample.step for sample in history.samples} == set(range(1, 7))
    for sample in history.samples:
        assert sample.details["which"] in ("best", "worst") and 0 <= sample.details["reward"] <= 1
    assert history.finished is not None
    summary = history.finished.summary
    assert summary["accuracy_before_low"] <= summary["accuracy_before"] <= summary["accuracy_before_high"]
    assert summary["accuracy"] == readings(undisturbed)[-2][2]["accuracy"]


def test_killed_between_readings_they_are_each_there_once_and_the_same(
    workplace: Workplace, smoke: Run, undisturbed: Run
) -> None:
    run = workplace.copy(smoke, "rl-killed")
    run.set(SETTINGS)
    process = workplace.launch(run, "rl", fresh=True, hold=4)
    wait_for(lambda: len(run.attempts("rl")) == 2 and step_of(run, "rl") >= 4, WAIT_S, "step 4")
    workplace.kill(process, run, "rl")
    assert workplace.launch(run, "rl").wait(WAIT_S) == 0
    assert readings(run) == readings(undisturbed)
    mine, theirs = (StageHistory(one, "rl").read_all() for one in (run, undisturbed))
    for curve in CURVES:
        assert mine.series[curve].values == theirs.series[curve].values, curve
    shown = [[(s.step, s.prompt, s.text, s.details) for s in history.samples] for history in (mine, theirs)]
    assert shown[0] == shown[1]
    assert mine.finished is not None and theirs.finished is not None
    assert mine.finished.summary["accuracy_before"] == theirs.finished.summary["accuracy_before"]


def test_two_ranks_report_what_one_does(workplace: Workplace, smoke: Run, undisturbed: Run) -> None:
    run = workplace.copy(smoke, "rl-ranks")
    run.set([*SETTINGS, "launch.nproc=2", "rl.steps=2"])
    assert workplace.launch(run, "rl", fresh=True).wait(WAIT_S) == 0
    assert readings(run)[:2] == readings(undisturbed)[:2]
    two, one = (StageHistory(each, "rl").read_all().series for each in (run, undisturbed))
    for curve in CURVES:
        assert two[curve].values[0] == pytest.approx(one[curve].values[0], rel=1e-5, abs=1e-7), curve
    shown = [
        [(s.prompt, s.text, s.details) for s in StageHistory(each, "rl").read_all().samples if s.step == 1]
        for each in (run, undisturbed)
    ]
    assert shown[0] == shown[1]
    for curve in ("loss", "grad_norm"):
        assert two[curve].values[0] == pytest.approx(one[curve].values[0], rel=1e-3, abs=1e-5), curve


def test_fewer_questions_than_ranks(workplace: Workplace, smoke: Run) -> None:
    run = workplace.copy(smoke, "rl-few")
    run.set(["rl.questions=1", "launch.nproc=2"])
    assert workplace.launch(run, "rl", fresh=True).wait(WAIT_S) == 2
    said = [event for event in event_file.tail_events(run.events_file("rl", run.attempts("rl")[-1]))]
    assert any(isinstance(event, ev.Failed) and "fewer than the 2 ranks" in event.error for event in said)
