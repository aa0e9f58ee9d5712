from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picollm.data.documents import Document, first_characters, pieces, split
from picollm.data.split import split_into
from picollm.run.errors import UserError

texts = st.text(alphabet=st.sampled_from(list("ab. \n")), max_size=300)


@given(texts, st.integers(1, 50))
def test_pieces_join_to_the_text(text: str, limit: int) -> None:
    found = pieces(text, limit)
    assert "".join(found) == text
    assert all(0 < len(piece) <= limit for piece in found)


@given(st.lists(texts, max_size=6), st.integers(1, 500))
def test_first_characters(found: list[str], most: int) -> None:
    assert "".join(first_characters(found, most)) == "".join(found)[:most]
    read: list[str] = []
    list(first_characters((read.append(text) or text for text in found), most))  # type: ignore[func-returns-value]
    assert sum(map(len, read[:-1])) < most  # no text is read that is not needed


def test_pieces_prefer_paragraphs() -> None:
    text = "one one.\ntwo.\n\nthree three three.\n\nfour"
    assert pieces(text, 36) == ["one one.\ntwo.\n\nthree three three.\n\n", "four"]
    assert pieces("word word word word", 11) == ["word word ", "word word"]
    assert pieces("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]


@given(st.lists(texts.filter(str.strip), min_size=1, max_size=80, unique=True), st.floats(0.01, 0.5))
def test_split_loses_nothing_and_ignores_order(found: list[str], share: float) -> None:
    documents = [Document(id=str(n), text=text) for n, text in enumerate(found)]
    if len(documents) == 1 and len(found[0].strip()) < 2:
        return
    train, val = split(documents, share)
    assert train and val
    again_train, again_val = split(documents[::-1], share)
    assert {d.text for d in train} == {d.text for d in again_train}
    assert {d.text for d in val} == {d.text for d in again_val}
    total = sum(len(d.text.split()) for d in documents)
    assert sum(len(d.text.split()) for d in [*train, *val]) >= total  # a cut inside a word makes two


def test_split_share_and_stability() -> None:
    documents = [Document(id=str(n), text=f"document {n}") for n in range(2000)]
    train, val = split(documents, 0.1)
    assert 150 < len(val) < 250
    more = [*documents, *(Document(id=f"new{n}", text=f"new {n}") for n in range(500))]
    more_train, more_val = split(more, 0.1)
    assert set(val) <= set(more_val) and set(train) <= set(more_train)


@pytest.mark.parametrize("text", ["A single short line of text.", "word " * 50_000, "One.\n\nTwo.\n\nThree.\n\n" * 40])
def test_one_document_gives_both_sides(text: str) -> None:
    train, val = split([Document(id="only", text=text)], 0.04)
    assert train and val
    assert sum(len(d.text) for d in train) > sum(len(d.text) for d in val)


def test_validation_never_takes_most_of_the_text() -> None:
    for n in range(40):
        train, val = split([Document(id="long", text=f"long {n} " * 20), Document(id="short", text=f"{n}.")], 0.5)
        assert train and sum(len(d.text) for d in train) >= sum(len(d.text) for d in val) > 0


def test_too_little() -> None:
    for documents in ([], [Document(id="a", text="x")]):
        with pytest.raises(UserError, match="too little text"):
            split(documents, 0.1)


@given(
    st.lists(st.text(st.sampled_from("abc \n"), min_size=1, max_size=40), min_size=2, max_size=130),
    st.sampled_from([0.001, 0.04, 0.5]),
)
def test_split_as_they_come_is_split_of_all(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], share: float
) -> None:
    documents = [Document(id=str(n), text=text) for n, text in enumerate(texts)]
    folder = tmp_path_factory.mktemp("split")
    try:
        expected = split(documents, share)
    except UserError as error:
        with pytest.raises(UserError, match=str(error)[:20]):
            split_into(folder, iter(documents), share)
        return
    found = split_into(folder, iter(documents), share)
    for name, part, wanted in zip(("train", "val"), found, expected, strict=True):
        lines = (folder / f"{name}.jsonl").read_bytes().splitlines()
        assert [msgspec.json.decode(line, type=Document) for line in lines] == wanted
        assert (part.documents, part.bytes) == (len(wanted), sum(len(d.text.encode()) for d in wanted))
    assert sorted(path.name for path in folder.iterdir()) == ["train.jsonl", "val.jsonl"]
