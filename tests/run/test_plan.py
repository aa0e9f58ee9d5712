from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from picollm.run import config, pipeline, plan
from picollm.run.config import Config
from picollm.run.errors import UserError
from picollm.run.planned import apply_plan


def wishes(*sets: str) -> Config:
    return config.load(sets=sets, environ={})


def measured(train: float = 5e11, decode: float = 5e10, **more: float) -> plan.Measured:
    found = {"light_s": 0.3, "torch_s": 1.5, "text_bytes": 2_500_000, "spent_s": 15.0} | more
    return plan.Measured(train_flops_s=train, decode_flops_s=decode, **found)  # type: ignore[arg-type]


rates = st.floats(1e10, 1e14)


@given(rates, st.floats(3, 600))
def test_planned_steps_fit_the_budget(train: float, minutes: float) -> None:
    settings, found = wishes(f"run.minutes={minutes}"), measured(train, train / 10)
    made = plan.make_plan(settings, found)
    # Where the machine is too slow for the budget, the smallest number of steps that still teaches is kept.
    assume(all(made.values[f"{name}.steps"] > least for name, least in plan.SMALLEST_STEPS.items()))
    step_s = plan._step_seconds(settings, found, plan.at_depth(settings, made.values["model.depth"]))
    training = sum(made.values[f"{name}.steps"] * step_s[name] for name in plan.TRAINED)
    assume(training > 0.25 * 60 * minutes)  # a fifth goes to training even where the rest alone is too much
    one_step_each = sum(made.seconds[name] / made.values[f"{name}.steps"] for name in plan.TRAINED)
    assert abs(sum(made.seconds.values()) - 60 * minutes) <= one_step_each + 1


@given(rates, st.floats(1.1, 100))
def test_a_slower_machine_is_never_given_a_deeper_model(train: float, times: float) -> None:
    slow = plan.make_plan(wishes(), measured(train / times, train / times / 10)).values["model.depth"]
    fast = plan.make_plan(wishes(), measured(train, train / 10)).values["model.depth"]
    assert plan.SHALLOWEST <= slow <= fast <= plan.DEEPEST


def test_speed_decides_the_depth() -> None:
    long = wishes("run.minutes=600")
    depths = [plan.make_plan(long, measured(rate, rate / 10)).values["model.depth"] for rate in (1e8, 1e15)]
    assert depths == [plan.SHALLOWEST, plan.DEEPEST]


def test_more_minutes_are_more_steps_or_a_deeper_model() -> None:
    few, many = (plan.make_plan(wishes(f"run.minutes={minutes}", "model.depth=4"), measured()) for minutes in (5, 20))
    assert all(many.values[f"{name}.steps"] > few.values[f"{name}.steps"] for name in plan.TRAINED)


def test_a_larger_share_is_more_steps_at_the_cost_of_the_others() -> None:
    plain, more = (
        plan.make_plan(wishes("run.minutes=20", "model.depth=4", *sets), measured()).values
        for sets in ((), ("midtrain.share=0.5",))
    )
    assert more["midtrain.steps"] > 2 * plain["midtrain.steps"]
    assert all(more[f"{name}.steps"] < plain[f"{name}.steps"] for name in ("pretrain", "sft", "rl"))


def test_what_rl_could_only_repeat_goes_to_the_stages_before() -> None:
    long = "run.minutes=600", "model.depth=2", "rl.questions=16"
    capped = plan.make_plan(wishes(*long), measured())
    assert capped.values["rl.steps"] == plan.RL_QUESTIONS // 16
    assert abs(sum(capped.seconds.values()) - 600 * 60) <= 30


@given(st.integers(2, 8), st.integers(1, 500), rates)
def test_what_the_person_set_is_kept(depth: int, steps: int, train: float) -> None:
    settings = wishes(f"model.depth={depth}", f"sft.steps={steps}", "model.dim=128")
    made = plan.make_plan(settings, measured(train, train / 10))
    assert (made.values["model.depth"], made.values["sft.steps"], made.values["model.dim"]) == (depth, steps, 128)
    resolved = apply_plan(settings, made)
    assert (resolved.model.depth, resolved.sft.steps, resolved.model.dim) == (depth, steps, 128)
    assert resolved.pretrain.steps == made.values["pretrain.steps"] > 0


def test_every_setting_left_open_is_planned_and_every_stage_predicted() -> None:
    made = plan.make_plan(wishes(), measured())
    open_ones = {key for key, knob in config.knobs().items() if knob.auto}
    assert open_ones <= made.values.keys() and all(made.values.values())
    assert set(made.seconds) == set(pipeline.NAMES) and all(seconds >= 0 for seconds in made.seconds.values())
    assert plan.shape(apply_plan(wishes(), made)).depth == made.values["model.depth"]


def test_a_hopelessly_slow_machine_still_gets_the_least_that_teaches() -> None:
    made = plan.make_plan(wishes(), measured(1e6, 1e5))
    assert {name: made.values[f"{name}.steps"] for name in plan.TRAINED} == plan.SMALLEST_STEPS


def test_an_unplanned_shape_says_so() -> None:
    with pytest.raises(UserError, match=r"model\.depth is not planned yet: run preflight"):
        plan.shape(wishes())
