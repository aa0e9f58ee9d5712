"""Log-probabilities as the OpenAI API writes them: one shape for chat, another for plain completions."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from picollm.infer.rows import Vocabulary
from picollm.infer.sampling import TokenLogprob


class LogprobWriter:
    """Writes those of one choice, piece by piece.

    Args:
        chat: which of the two shapes.
        offset: characters before the answer; plain completions count the place of a token from the prompt's start.
    """

    def __init__(self, *, chat: bool, offset: int = 0) -> None:
        self.chat, self.offset = chat, offset
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")  # one may be spread over several tokens

    def write(self, tok: Vocabulary, records: Sequence[TokenLogprob]) -> dict[str, Any]:
        return self._chat(tok, records) if self.chat else self._plain(tok, records)

    def _chat(self, tok: Vocabulary, records: Sequence[TokenLogprob]) -> dict[str, Any]:
        def entry(token: int, logprob: float) -> dict[str, Any]:
            return {"token": name_of(tok, token), "logprob": logprob, "bytes": list(tok.decode_bytes([token]))}

        content = [
            entry(record.id, record.logprob) | {"top_logprobs": [entry(*pair) for pair in _sayable(tok, record)]}
            for record in records
        ]
        return {"content": content, "refusal": None}

    def _plain(self, tok: Vocabulary, records: Sequence[TokenLogprob]) -> dict[str, Any]:
        offsets = []
        for record in records:
            offsets.append(self.offset)
            self.offset += len(self._characters.decode(tok.decode_bytes([record.id])))
        return {
            "tokens": [name_of(tok, record.id) for record in records],
            "token_logprobs": [record.logprob for record in records],
            "top_logprobs": [
                {name_of(tok, token): logprob for token, logprob in (*_sayable(tok, record), record[:2])}
                for record in records
            ],
            "text_offset": offsets,
        }


def _sayable(tok: Vocabulary, record: TokenLogprob) -> list[tuple[int, float]]:
    """The likeliest tokens that have a text: marks such as the end of an answer are nobody's business."""
    return [(token, logprob) for token, logprob in record.top if not tok.is_special(token)]


def name_of(tok: Vocabulary, token: int) -> str:
    r"""The text of a token, or `bytes:\xe2\x98` for one that holds only a part of a character."""
    data = tok.decode_bytes([token])
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
