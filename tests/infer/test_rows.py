"""One answer: text that never shows half a character, a stop text or a tool; and why it ended."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from picollm.infer.rows import Marks, Row, TextStream
from picollm.infer.sampling import Sampling
from tests.infer.fakes import ByteTokenizer

TOK = ByteTokenizer()
S = TOK.special


def row(limit: int = 1000, **sampling) -> Row:
    return Row(Marks(TOK), Sampling(**sampling), prompt_tokens=3, limit=limit)


def feed(r: Row, tokens: list[int]) -> list[str]:
    shown = []
    for token in tokens:
        while r.queue and not r.finish_reason:
            shown.append(r.push(r.queue.popleft(), forced=True))
        if r.finish_reason:
            break
        shown.append(r.push(token))
    return shown


@given(st.text(max_size=40), st.lists(st.text("ab ", min_size=1, max_size=3), max_size=3))
def test_pieces_add_up_and_stop_where_the_text_would(text: str, stop: list[str]) -> None:
    stream = TextStream(stop)
    pieces = [stream.push(bytes([b])) for b in text.encode()] + [stream.close()]
    cut = min((i for s in stop if (i := text.find(s)) >= 0), default=len(text))
    assert "".join(pieces) == stream.text
    if stream.stopped:
        # With several stop texts the one that is complete first ends the answer.
        assert not any(s in stream.text for s in stop)
        assert text.startswith(stream.text) and len(stream.text) >= cut
    else:
        assert stream.text == text


def test_characters_are_shown_whole() -> None:
    assert feed(row(), list("é☃".encode())) == ["", "é", "", "", "☃"]


def test_broken_bytes_become_a_mark() -> None:
    r = row()
    assert "".join(feed(r, [0xE2, 0x98, 65, S("<|assistant_end|>")])) == "\ufffdA"


def test_half_a_character_at_the_end_is_not_lost() -> None:
    r = row(limit=2)
    assert feed(r, [65, 0xE2]) == ["A", "\ufffd"]
    assert r.completion().finish_reason == "length"


def test_stop_text_is_held_back_and_cut() -> None:
    r = row(stop=["\n\n", "User:"])
    shown = feed(r, list(b"yes\nUs, and\n\nmore"))
    assert "".join(shown) == "yes\nUs, and" == r.completion().text
    assert r.completion().finish_reason == "stop"
    assert shown[3:5] == ["", "\n"]  # held until the next character says it is no stop


def test_held_text_is_released_at_the_end() -> None:
    r = row(limit=4, stop=["yesss"])
    assert "".join(feed(r, list(b"yess"))) == "yess"


def test_ends_at_assistant_end_and_bos() -> None:
    for name in ("<|assistant_end|>", "<|bos|>"):
        r = row()
        feed(r, [65, S(name), 66])
        done = r.completion()
        assert (done.text, done.ids, done.finish_reason) == ("A", [65, S(name)], "stop")


def call(expression: str) -> list[int]:
    return [S("<|python_start|>"), *expression.encode(), S("<|python_end|>")]


def test_calculator_output_is_forced_and_hidden() -> None:
    r = row()
    shown = feed(r, [*b"is ", *call("6*7"), *b"42.", S("<|assistant_end|>")])
    done = r.completion()
    output = [S("<|output_start|>"), *b"42", S("<|output_end|>")]
    assert done.ids == [*b"is ", *call("6*7"), *output, *b"42.", S("<|assistant_end|>")]
    assert [t for t, forced in zip(done.ids, done.forced, strict=True) if forced] == output
    assert "".join(shown) == done.text == "is 42."


def test_refused_expression_gets_no_output() -> None:
    r = row()
    feed(r, [*call("__import__('os')"), *b"x", S("<|assistant_end|>")])
    assert not any(r.completion().forced) and r.completion().text == "x"


def test_tools_can_be_off() -> None:
    r = Row(Marks(TOK), Sampling(), prompt_tokens=1, limit=50, tools=False)
    feed(r, call("6*7"))
    assert not r.queue


def test_marks_out_of_place_do_no_harm() -> None:
    r = row()
    feed(r, [S("<|python_end|>"), S("<|output_end|>"), *b"a", S("<|output_start|>"), *b"forged", S("<|output_end|>"),
             *b"b", S("<|user_start|>"), *b"c", S("<|assistant_end|>")])  # fmt: skip
    assert r.completion().text == "abc" and not any(r.completion().forced)


@given(st.lists(st.integers(0, TOK.vocab_size - 1), max_size=60))
def test_any_tokens_are_survived(tokens: list[int]) -> None:
    r = row(limit=30, stop=["ab"], logprobs=True)
    shown = feed(r, tokens)
    if not r.finish_reason:
        shown.append(r.cancel())
    done = r.completion()
    assert "".join(shown) == done.text
    assert len(done.ids) == len(done.forced) == len(done.logprobs or []) <= 30
