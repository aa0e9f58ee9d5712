from __future__ import annotations

import pytest

from picollm.data.documents import Document
from picollm.text.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tok() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat and the dog sat on the cat " * 20], 290)


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    """120 short documents of different lengths."""
    words = ["the", "cat", "sat", "on", "mat", "dog", "größer"]
    return [
        Document(id=f"doc{n}", text=" ".join(words[(n * k) % 7] for k in range(1, 3 + n % 23)) + f" {n}.")
        for n in range(120)
    ]
