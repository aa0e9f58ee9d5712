from __future__ import annotations

import pytest

from picollm.text.tokenizer import Tokenizer, train_tokenizer

TEXT = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind: it's asleep.",
    "def split(text, sep=None):\n    '''Return a list of the words in the text.'''\n    return text.split(sep)\n",
    "In 1999 there were 12345 sheep; don't count them twice, they'll know. WE'RE sure.",
    "Grüße aus Köln — naïve café, 你好世界, 🙂🙂, Здравствуй, мир!",
] * 8


@pytest.fixture(scope="session")
def tok() -> Tokenizer:
    return train_tokenizer(TEXT, 400)


@pytest.fixture(scope="session")
def bytes_tok() -> Tokenizer:
    """No merges: one token per byte, so that golden ids can be read by eye."""
    return train_tokenizer(["a"], 265)
