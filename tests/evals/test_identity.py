from __future__ import annotations

import pytest

from picollm.evals.identity import identity_check, verdict
from picollm.tasks.identity import build, material
from tests.evals.fakes import TableEngine


def answers(name: str = "picollm", maker: str = "my owner", share: float = 1.0):
    """Answers rightly what it knows, which is the first share of each theme's held-out questions."""
    table = {
        prompt: theme.answers[0]
        for theme in material(name, maker).theme
        for prompt in theme.heldout[: round(share * len(theme.heldout))]
    }
    return TableEngine(lambda text: next((a for p, a in table.items() if p in text), "I am ChatGPT."))


def test_every_held_out_phrasing_is_asked():
    engine = answers()
    found = identity_check(engine, engine.tok)
    assert found.n == found.correct >= 200
    assert verdict(found).endswith("it knows who it is") and "100.0 % of 228" in verdict(found)


@pytest.mark.parametrize(("share", "says"), [(5 / 6, "mostly knows"), (0.5, "does not know who it is yet")])
def test_the_verdict_follows_the_share(share, says):
    engine = answers(share=share)
    found = identity_check(engine, engine.tok)
    assert found.accuracy == pytest.approx(share, abs=0.01)
    assert says in verdict(found) and "\n" not in verdict(found)


def test_the_rows_say_whose_name_is_right(tmp_path):
    build(tmp_path / "bo.jsonl", name="Bo", maker="Ada")
    bo, other = answers("Bo", "Ada"), answers()
    assert identity_check(bo, bo.tok, tmp_path / "bo.jsonl").accuracy == 1.0
    themes = identity_check(other, other.tok, tmp_path / "bo.jsonl").topics
    assert themes["name"][0] == themes["maker"][0] == 0 and themes["size"][0] == 12
