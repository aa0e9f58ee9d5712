from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm.evals import likelihood
from picollm.evals.likelihood import Option, common_prefix, cropped, scores
from picollm.infer.engine import Engine
from tests.infer.fakes import ByteTokenizer, tiny_model

CONTEXT = 128


def engine(**changes) -> Engine:
    return Engine(tiny_model(**changes), ByteTokenizer())


def plain(model, option: Option) -> tuple[float, int, bool]:
    """The definition: one row, all logits."""
    with torch.no_grad():
        logs = torch.log_softmax(model(torch.tensor([option.ids]))[0].double(), -1)
    places = range(option.start - 1, len(option.ids) - 1)
    nll = -sum(logs[p, option.ids[p + 1]].item() for p in places)
    return nll, len(places), all(int(logs[p].argmax()) == option.ids[p + 1] for p in places)


def row(seed: int, length: int) -> list[int]:
    return torch.randint(0, 265, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def questions(sizes: list[tuple[int, list[int]]]) -> list[list[Option]]:
    """(length of what is shared, lengths of the rests): the rests are scored."""
    made = []
    for number, (shared, rests) in enumerate(sizes):
        begin = row(number, shared)
        made.append([Option(begin + row(1000 + 10 * number + o, rest), shared) for o, rest in enumerate(rests)])
    return made


SIZES = st.lists(st.tuples(st.integers(1, 90), st.lists(st.integers(1, 38), max_size=4)), max_size=5)


@settings(max_examples=25, deadline=None)
@given(SIZES, st.sampled_from([64, 500, 4000]), st.booleans())
def test_any_batching_gives_what_one_row_at_a_time_gives(sizes, budget, windows):
    made = engine(window_pattern="SL" if windows else "L")
    asked = questions(sizes)
    found = scores(made.model, asked, budget)
    for options, got in zip(asked, found, strict=True):
        for option, score in zip(options, got, strict=True):
            nll, tokens, greedy = plain(made.source, option)
            assert score.nll == pytest.approx(nll, rel=1e-4) and (score.tokens, score.greedy) == (tokens, greedy)
            assert score.mean == pytest.approx(nll / tokens, rel=1e-4)


def test_rows_as_long_as_the_context_fit():
    made = engine()
    asked = questions([(CONTEXT - 1, [1, 1]), (20, [CONTEXT - 20, 3])])
    for options, got in zip(asked, scores(made.model, asked, 10**6), strict=True):
        assert [s.nll for s in got] == pytest.approx([plain(made.source, o)[0] for o in options], rel=1e-4)


def test_what_options_share_is_read_once(monkeypatch):
    made, read = engine(), []
    honest = made.model.hidden
    monkeypatch.setattr(made.model, "hidden", lambda ids, span=None: read.append(ids.numel()) or honest(ids, span))
    scores(made.model, questions([(90, [5, 5, 5, 5])]), 10**6)
    # the last id they share is read with each rest, to score its first id; the last id of all is not read
    assert read == [89, 4 * (1 + 5)]


def test_batches_keep_to_the_budget_and_only_scored_positions_have_logits(monkeypatch):
    made, cells, heads = engine(), [], []
    hidden, logits = made.model.hidden, made.model.logits
    monkeypatch.setattr(made.model, "hidden", lambda ids, span=None: cells.append(ids.numel()) or hidden(ids, span))
    monkeypatch.setattr(made.model, "logits", lambda x: heads.append(x.shape[-2]) or logits(x))
    monkeypatch.setattr(likelihood, "chunk_rows_for", lambda *a: 7)
    scores(made.model, questions([(n, [4]) for n in range(20, 80, 3)]), 300)
    assert max(cells) <= 300 and sum(heads) == 20 * 4 and max(heads) <= 7


def test_the_greedy_continuation_is_known_as_such():
    made = engine()
    ids = row(5, 10)
    for _ in range(4):
        with torch.no_grad():
            ids.append(int(made.source(torch.tensor([ids]))[0, -1].argmax()))
    other = [*ids[:-1], (ids[-1] + 1) % 265]
    [[right], [wrong]] = scores(made.model, [[Option(ids, 10)], [Option(other, 10)]], 1000)
    assert right.greedy and not wrong.greedy


def test_a_long_row_loses_its_beginning():
    assert cropped([1, 2, 3, 4, 5], 3, 10) == Option([1, 2, 3, 4, 5], 3)
    assert cropped([1, 2, 3, 4, 5], 3, 4) == Option([2, 3, 4, 5], 2)
    assert cropped([1, 2, 3, 4, 5], 1, 3) == Option([3, 4, 5], 1)  # what stood at the front cannot be scored
    assert common_prefix([[1, 2, 3], [1, 2], [1, 2, 4]]) == 2 and common_prefix([[1], [2]]) == 0
