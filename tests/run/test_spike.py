from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picollm.run.spike import CALM, SHARE, Spike, opening_spike


def spike(losses: list[float], before: float = 4.0) -> Spike | None:
    return opening_spike(before, list(range(1, len(losses) + 1)), losses)


def test_a_jump_has_a_height_a_step_and_an_end() -> None:
    found = spike([6.5, 7.0, 5.0, 4.2, 3.9, 3.8, 3.7, 9.0])
    assert found == Spike(before=4.0, top=7.0, step=2, recovered_step=6)  # (4.2 + 3.9 + 3.8) / 3 < 4
    assert found.height == pytest.approx(3.0)
    assert found.as_summary() == {"before": 4.0, "top": 7.0, "step": 2, "recovered_step": 6, "height": 3.0}


@pytest.mark.parametrize("losses", [[], [4.1, 4.2, 9.0], [3.0, 2.0]])
def test_what_begins_where_it_ended_is_no_jump(losses: list[float]) -> None:
    assert spike(losses) is None


def test_one_low_step_is_no_recovery() -> None:
    found = spike([7.0, 6.0, 1.0, 6.0, 6.0, 6.0])
    assert found is not None and found.recovered_step is None and found.step == 1


def test_steps_that_were_skipped_keep_their_numbers() -> None:
    found = opening_spike(4.0, [2, 3, 5, 6, 7, 8], [5.0, 7.0, 3.0, 3.0, 3.0, 3.0])
    assert found is not None and (found.step, found.recovered_step) == (3, 7)  # (7+3+3)/3 is above 4


@given(st.lists(st.floats(0, 20), max_size=40), st.floats(0.1, 10))
def test_more_steps_never_change_what_was_over(losses: list[float], before: float) -> None:
    found = [spike(losses[:n], before) for n in range(len(losses) + 1)]
    ended = [one for one in found if one is not None and one.recovered_step is not None]
    assert all(one == ended[0] for one in ended)
    for one in ended:
        assert one.recovered_step is not None and one.recovered_step >= CALM and one.step <= one.recovered_step
        assert one.top >= max(losses[:2]) > SHARE * before
