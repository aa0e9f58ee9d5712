"""The pure fold."""

from __future__ import annotations

import dataclasses

import pytest
from msgspec.structs import replace

from picollm.run import config as settings
from picollm.run import pipeline
from picollm.run.folder import STATES, StageStatus
from tui import state


def view(**states: str) -> state.RunView:
    stages = tuple(
        StageStatus(name=name, state=states.get(name, "waiting"), predicted_s=10.0, eta=10.0) for name in pipeline.NAMES
    )
    return state.RunView(name="r", exists=True, stages=stages)


def test_every_state_has_symbol_and_word() -> None:
    assert set(state.LOOKS) == {*STATES, "queued"}
    words = [look.word for look in state.LOOKS.values()]
    assert len(set(words)) == len(words)
    assert all(len(look.symbol) == 1 and len(look.short) <= 5 for look in state.LOOKS.values())


def test_models_are_those_whose_stage_finished() -> None:
    found = view(pretrain="done", midtrain="stale", sft="running")
    assert state.models(found.stages) == ("base", "mid")
    assert state.best_chat_model(("base", "mid", "sft")) == "sft"
    assert state.best_chat_model(("base",)) is None


def test_where_to_look_prefers_what_runs_then_what_broke() -> None:
    assert state.where_to_look(view(doctor="done", pretrain="failed", sft="running")) == "sft"
    assert state.where_to_look(view(doctor="done", pretrain="failed")) == "pretrain"
    assert state.where_to_look(view(doctor="ready")) == "doctor"
    assert state.where_to_look(view(**dict.fromkeys(pipeline.NAMES, "done"))) == "report"


def test_missing_upstream_is_in_order_and_stops_at_what_is_done() -> None:
    done = dict.fromkeys(("doctor", "preflight", "dataset", "tokenizer", "tokenizer_eval"), "done")
    assert state.missing_upstream(view(**done), "midtrain") == ("pretrain", "base_eval", "identity")
    assert state.missing_upstream(view(**dict.fromkeys(pipeline.NAMES, "done")), "rl") == ()


def test_totals_count_what_is_to_go() -> None:
    sums = state.totals(view(doctor="done"))
    assert (sums.done, sums.stages, sums.left) == (1, 13, 120.0)


def test_what_was_asked_for_is_queued_and_alone_is_still_to_go() -> None:
    found = dataclasses.replace(
        view(doctor="done", preflight="running", dataset="ready"), queue=("preflight", "dataset")
    )
    assert [found.look(name).word for name in ("preflight", "dataset", "sft")] == ["running", "queued", "waiting"]
    assert state.totals(found).left == 20.0
    assert state.totals(dataclasses.replace(found, queue=None)).left == 120.0


def test_before_the_plan_the_budget_says_how_long_it_takes() -> None:
    for profile, left in (("pocket", 288), ("smoke", 48), ("speedrun", None)):
        wishes = settings.load(profile, environ={})
        found = state.promised(state.empty("r"), wishes.run)
        assert found.profile == profile and all(status.predicted_s for status in found.stages[:2])
        assert state.totals(found).left == (left and pytest.approx(left, rel=0.05))


def test_stages_at_work_at_the_same_time_count_once() -> None:
    """From the Hub: training began 100 s after the download, and 300 s of it are left beside 50 s of the download."""
    begun = {"doctor": (0.0, 10.0), "dataset": (10.0, 200.0), "tokenizer": (90.0, 120.0), "pretrain": (110.0, 100.0)}
    left = {"dataset": 50.0, "tokenizer": 20.0, "pretrain": 300.0}
    stages = tuple(
        StageStatus(name=name, state="running" if name in left else "done", eta=left.get(name, 0.0), predicted_s=999.0,
                    started=begun.get(name, (None, 0.0))[0], seconds=begun.get(name, (None, 0.0))[1])
        for name in pipeline.NAMES
    )  # fmt: skip
    hub = {"data.source": "climbmix", "data.shards": 9, "data.first_shards": 4}
    sums = state.totals(state.RunView(name="r", exists=True, stages=stages, settings=hub))
    assert (sums.elapsed, sums.left) == (210.0, 300.0)
    late = [replace(one, eta=400.0) if one.name == "dataset" else one for one in stages]
    assert state.totals(state.RunView(name="r", stages=tuple(late), settings=hub)).left == 420.0
    waiting = [replace(one, state="ready") if one.name == "pretrain" else one for one in stages]
    assert state.totals(state.RunView(name="r", stages=tuple(waiting), settings=hub)).left == 300.0 + 35.0
    assert state.totals(state.RunView(name="r", stages=stages, settings={})).left == 370.0


def test_headline_says_the_worst_first() -> None:
    assert "SFT crashed" in state.headline(view(sft="crashed"))[0]
    assert state.headline(view(**dict.fromkeys(pipeline.NAMES, "done")))[0] == "finished"
    assert state.headline(state.empty("x"))[0] == "no such run yet"
    gone = dataclasses.replace(state.empty("x"), gone=True)
    assert state.headline(gone)[0].startswith("gone") and state.advice(gone, "doctor") == ""


def test_of_two_that_run_the_one_in_front_is_shown() -> None:
    seen = view(dataset="running", pretrain="running")
    behind = [StageStatus(name=s.name, state=s.state, usable=s.name == "dataset") for s in seen.stages]
    seen = state.RunView(name="r", exists=True, stages=tuple(behind))
    assert seen.active is not None and seen.active.name == state.where_to_look(seen) == "pretrain"
    assert state.headline(seen)[0].startswith("Pretrain")


def test_what_is_gone_is_made_again_by_launching_and_what_changed_by_redoing() -> None:
    def advice(**more: object) -> str:
        stages = tuple(replace(one, **more) if one.name == "sft" else one for one in view(sft="stale").stages)
        return state.advice(state.RunView(name="r", exists=True, stages=stages), "sft")

    assert advice() == "redo" and advice(lost="own") == advice(pending=True) == "launch"
