from __future__ import annotations

from picollm.evals.samples import DOCS_PROMPTS, GENERAL_PROMPTS, base_samples, prompts_for
from picollm.infer.engine import Engine
from tests.evals.fakes import TableEngine
from tests.infer.fakes import ByteTokenizer, tiny_model


def test_a_base_prompt_is_plain_text_without_turns():
    engine = TableEngine(lambda text: f"[{text}] goes on")
    found = base_samples(engine, ByteTokenizer(), ["The list is", "Why?"])
    assert [(s.prompt, s.text) for s in found] == [("The list is", "[The list is] goes on"), ("Why?", "[Why?] goes on")]


def test_the_same_seed_writes_the_same_and_equal_prompts_differ():
    engine = Engine(tiny_model(), ByteTokenizer())
    how = dict(max_tokens=20, temperature=1.0)
    one, two, other = (base_samples(engine, engine.tok, ["a", "a"], seed=seed, **how) for seed in (1, 1, 2))
    assert [s.text for s in one] == [s.text for s in two] != [s.text for s in other]
    assert one[0].text != one[1].text and one[0].tokens <= 20


def test_prompts_suit_the_text():
    assert prompts_for("pydocs") == DOCS_PROMPTS and prompts_for("books/") == GENERAL_PROMPTS
