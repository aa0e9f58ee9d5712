from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm.run.errors import StopRequested, UserError
from picollm.text.tokenizer import LONGEST_WORD, SPECIALS, Tokenizer, _without_long_runs, train_tokenizer
from tests.text.conftest import TEXT

# text as people write it, text from anywhere in Unicode, and the runs and marks that trip up split patterns
written = st.text(alphabet=st.sampled_from(list("aehtdTHE 019'.,\n\r\t\u00a0ßſé你🙂<|>")), max_size=60)
runs = st.builds(lambda unit, n: unit * n, st.sampled_from([" ", "\n", " \n", "\r\n", "a", "=", "12", "'ll"]),
                 st.integers(1, 700))  # fmt: skip
spelled = st.sampled_from(SPECIALS)
texts = st.lists(st.one_of(written, st.text(max_size=40), runs, spelled), max_size=6).map("".join)


@pytest.fixture(scope="module")
def reference(tok: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    """tokenizer.json as any other tool opens it; specials in text read as text, as `Tokenizer.encode` promises."""
    folder = tmp_path_factory.mktemp("tok")
    tok.save(folder)
    other = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    other.encode_special_tokens = True
    return other


@settings(max_examples=300, deadline=None)
@given(texts)
def test_ids_equal_those_of_tokenizers(tok: Tokenizer, reference: tokenizers.Tokenizer, text: str) -> None:
    assert tok.encode(text) == reference.encode(text, add_special_tokens=False).ids


@settings(max_examples=200, deadline=None)
@given(texts)
def test_round_trip_and_byte_counts(tok: Tokenizer, text: str) -> None:
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert tok.decode_bytes(ids) == text.encode()
    assert int(tok.token_bytes()[ids].sum()) == len(text.encode())


def test_long_runs_do_not_overflow(tok: Tokenizer) -> None:
    for text in (" " * 1_000_000 + "a", "\n" * 300_000, "a" * 300_000, "\t" * 300_000 + "\nx"):
        assert tok.decode(tok.encode(text)) == text


@pytest.mark.parametrize("unit", ["thequickbrownfox", "=-", "_", "你好"])
def test_long_runs_do_not_slow_training_down(unit: str) -> None:
    run = unit * (600_000 // len(unit))
    begun = time.process_time()
    tok = train_tokenizer([f"before {run} after"], 400)
    assert time.process_time() - begun < 30  # of all threads; uncut it takes minutes
    assert tok.decode(tok.encode(run)) == run


@given(texts)
def test_text_without_long_runs_is_left_whole(text: str) -> None:
    pieces = list(_without_long_runs(text))
    assert "".join(pieces) == text
    if max(map(len, text.split()), default=0) <= LONGEST_WORD:
        assert pieces == [text]


def test_specials_follow_the_vocabulary_and_are_text_when_spelled(tok: Tokenizer) -> None:
    assert [tok.special(name) for name in SPECIALS] == list(range(tok.vocab_size - len(SPECIALS), tok.vocab_size))
    assert tok.vocab_size == 400 and tok.bos_id == tok.special("<|bos|>")
    for name in SPECIALS:
        ids = tok.encode(f"a{name}b")
        assert not any(tok.is_special(i) for i in ids)
        assert tok.decode(ids) == f"a{name}b"
    assert tok.decode([tok.bos_id, *tok.encode("hi")], skip_specials=True) == "hi"
    assert tok.decode([tok.bos_id, *tok.encode("hi")]) == "<|bos|>hi"
    assert not tok.token_bytes()[-len(SPECIALS) :].any() and tok.token_bytes()[: -len(SPECIALS)].all()
    with pytest.raises(KeyError):
        tok.special("<|nothing|>")


def test_tokenizer_json_knows_the_specials(tok: Tokenizer, tmp_path: Path) -> None:
    tok.save(tmp_path)
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert {name: other.token_to_id(name) for name in SPECIALS} == {name: tok.special(name) for name in SPECIALS}
    assert other.get_vocab_size() == tok.vocab_size


def test_save_and_load(tok: Tokenizer, tmp_path: Path) -> None:
    tok.save(tmp_path / "t")
    again = Tokenizer.load(tmp_path / "t")
    assert (again.hash, again.vocab_size, again.bos_id) == (tok.hash, tok.vocab_size, tok.bos_id)
    assert again.encode(TEXT[0]) == tok.encode(TEXT[0])
    assert not [p for p in (tmp_path / "t").iterdir() if p.suffix in {".pkl", ".tmp"}]


def test_ranks_file_is_what_tiktoken_reads(tok: Tokenizer, tmp_path: Path) -> None:
    from tiktoken.load import load_tiktoken_bpe

    tok.save(tmp_path)
    ranks = load_tiktoken_bpe(str(tmp_path / "ranks.tiktoken"))
    assert len(ranks) == tok.vocab_size - len(SPECIALS)
    assert all(tok.decode_bytes([rank]) == piece for piece, rank in ranks.items())


def test_training_repeats_and_ignores_order() -> None:
    assert train_tokenizer(TEXT, 350).hash == train_tokenizer(list(reversed(TEXT)), 350).hash


def test_little_text_gives_a_smaller_vocabulary() -> None:
    tok = train_tokenizer(["aaaa bbbb"], 5000)
    assert 265 <= tok.vocab_size < 300
    assert tok.decode(tok.encode("zz ü")) == "zz ü"


def test_lone_surrogates_are_replaced_not_fatal() -> None:
    tok = train_tokenizer(["broken \ud800 text"], 300)
    assert tok.decode(tok.encode("x\udfff")) == "x\ufffd"


def test_encode_many_equals_encode(tok: Tokenizer) -> None:
    for text in [*TEXT, *SPECIALS, "", "x\udfff"]:
        assert tok.encode_array(text).tolist() == tok.encode(text)
    assert tok.encode_many(TEXT, threads=2) == [tok.encode(text) for text in TEXT]


@pytest.mark.parametrize("nothing", [[], [""], ["", ""]])
def test_no_text_is_a_user_error(nothing: list[str]) -> None:
    with pytest.raises(UserError, match="no text"):
        train_tokenizer(nothing, 300)


def test_training_can_be_left_while_it_reads() -> None:
    def texts() -> Iterator[str]:
        yield from TEXT
        raise StopRequested()

    with pytest.raises(StopRequested):
        train_tokenizer(texts(), 300)


def test_vocab_below_the_bytes_is_a_user_error() -> None:
    with pytest.raises(UserError, match="265"):
        train_tokenizer(TEXT, 264)


def test_load_refuses_what_is_missing_or_changed(tok: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer in"):
        Tokenizer.load(tmp_path / "nowhere")
    tok.save(tmp_path)
    ranks = tmp_path / "ranks.tiktoken"
    ranks.write_bytes(ranks.read_bytes() + b"\n")
    with pytest.raises(UserError, match=r"ranks\.tiktoken was changed"):
        Tokenizer.load(tmp_path)
    tok.save(tmp_path)
    train_tokenizer(TEXT, 300).save(tmp_path / "other")
    (tmp_path / "tokenizer.json").write_bytes((tmp_path / "other" / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match=r"tokenizer\.json was changed"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 5}}}))
    with pytest.raises(UserError, match="gaps"):
        Tokenizer.load(tmp_path)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(UserError, match="cannot read"):
        Tokenizer.load(tmp_path)
