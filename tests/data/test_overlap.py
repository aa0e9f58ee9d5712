from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from picollm.data import overlap
from picollm.data.overlap import LONGEST, SHORTEST, measure, sample, words_of
from picollm.data.shards import Tokens
from picollm.text.tokenizer import Tokenizer

ITEM = "How many boats came home over the grey water when the lamps were lit along the old quay?"  # 18 words


def filler(n: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice("abcdefgh") for _ in range(n))


def test_a_copied_item_is_found_whatever_its_case_and_signs() -> None:
    shouted = "HOW MANY boats, came home (over the grey water) when the lamps were lit along the old quay"
    copied = f"{filler(50)} {shouted} {filler(9)}"
    found = measure({"t": [ITEM, ITEM.replace("boats", "ships").replace("lamps", "fires")]}, [filler(300), copied])["t"]
    assert (found.items, found.short, found.n) == (2, 0, 13)
    assert found.overlapping == 1 and found.near == 1


def test_a_part_overlaps_and_is_no_near_duplicate() -> None:
    part = " ".join(words_of(ITEM)[:13])
    found = measure({"t": [ITEM]}, [part])["t"]
    assert (found.overlapping, found.near) == (1, 0)
    assert measure({"t": [ITEM]}, [" ".join(words_of(ITEM)[:12])])["t"].overlapping == 0
    # never across two texts
    words = words_of(ITEM)
    assert measure({"t": [ITEM]}, [" ".join(words[:9]), " ".join(words[9:])])["t"].overlapping == 0


def test_short_items_are_counted_and_not_judged() -> None:
    found = measure({"t": ["What is two and two?", ITEM], "none": []}, ["what is two and two"])
    assert (found["t"].items, found["t"].short, found["t"].n, found["t"].overlapping) == (1, 1, SHORTEST, 0)
    assert found["none"].items == 0


def brute(items: list[str], texts: list[str], n: int) -> list[float]:
    have = set()
    for text in texts:
        words = words_of(text)
        have |= {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
    shares = []
    for item in items:
        words = words_of(item)
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        if grams:
            shares.append(sum(gram in have for gram in grams) / len(grams))
    return shares


words = st.lists(st.sampled_from(["a", "b", "c", "zz"]), min_size=0, max_size=25).map(" ".join)


@given(st.lists(words, min_size=1, max_size=5), st.lists(words, max_size=5))
def test_it_is_what_comparing_every_n_gram_gives(items: list[str], texts: list[str]) -> None:
    found = measure({"t": items}, texts)["t"]
    assert SHORTEST <= found.n <= LONGEST
    shares = brute(items, texts, found.n)
    assert found.items == len(shares) and found.short == len(items) - len(shares)
    assert found.overlapping == sum(share > 0 for share in shares)
    assert found.near == sum(share >= overlap.NEAR for share in shares)


def test_a_large_text_is_sampled_evenly(tok: Tokenizer) -> None:
    documents = [tok.encode(f"the cat {n}") for n in range(100)]
    ids = np.concatenate([[tok.bos_id, *document] for document in documents]).astype(np.uint16)
    bounds = np.cumsum([0, *(len(document) + 1 for document in documents)])
    tokens = Tokens([ids], [bounds])
    texts, share = sample(tokens, tok, most=len(ids))
    assert list(texts) == [f"the cat {n}" for n in range(100)] and share == 1.0
    texts, share = sample(tokens, tok, most=len(ids) // 4 + 1)
    assert list(texts) == [f"the cat {n}" for n in range(0, 100, 4)]
    assert 0.2 < share < 0.3
