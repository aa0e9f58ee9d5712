r"""Text to ids and back: byte-level BPE.

Trained with Hugging Face `tokenizers`, so `tokenizer.json` opens in every downstream tool; encoded with
`tiktoken`, which gives the same ids faster. A tokenizer is a folder of three plain files and never a pickle:

    tokenizer.json      the definition; its sha256 is the tokenizer's identity (`Tokenizer.hash`)
    ranks.tiktoken      the same vocabulary, one `base64(bytes) rank` per line
    meta.json           sizes, specials, split pattern, sha256 of the two files above

Ids 0 … n-1 are the BPE vocabulary (the 256 bytes first, then merges in order of rank), the specials follow.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tiktoken
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from picollm.run.errors import UserError
from picollm.run.folder import write_atomic

SPECIALS = [
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
]

# GPT-4's split with numbers in twos. Two departures keep both engines in step on any input: the case of
# contractions is spelled out (case folding differs between regex engines), and runs of white space are bounded
# (an unbounded `\s+(?!\S)` overflows tiktoken's backtracking stack on a run of about a million blanks).
SPLIT_PATTERN = (
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s{0,255}[\r\n]|\s{1,256}(?!\S)|\s{1,256}"
)
LONGEST_WORD = 256
# Learning merges takes time that grows with the square of a word's length, so in training a longer run of letters or
# signs (a dump, a ruler of dashes) is cut. Not so in the pattern: encoding is fast on runs of any length, and bounded
# classes of Unicode make automata that are slow, or from about 250 too large for tiktoken's regex engine.
_LONG_RUN = re.compile(rf"[^\W\d_]{{{LONGEST_WORD}}}|(?:[^\w \t\r\n]|_){{{LONGEST_WORD}}}")
SMALLEST_VOCAB = 256 + len(SPECIALS)

TOKENIZER_FILE, RANKS_FILE, META_FILE = "tokenizer.json", "ranks.tiktoken", "meta.json"
FORMAT = 1


class Tokenizer:
    """A trained tokenizer. `vocab_size` counts the specials; `hash` is the sha256 of tokenizer.json."""

    def __init__(self, definition: str) -> None:
        """`definition` is the text of a tokenizer.json written by this module; UserError if it is anything else."""
        self._definition = definition
        self.hash: str = hashlib.sha256(definition.encode()).hexdigest()
        self._ranks = _ranks_of(definition)
        self._specials = {name: len(self._ranks) + i for i, name in enumerate(SPECIALS)}
        self.vocab_size: int = len(self._ranks) + len(SPECIALS)
        self.bos_id: int = self._specials["<|bos|>"]
        self._encoding = tiktoken.Encoding(
            "picollm", pat_str=SPLIT_PATTERN, mergeable_ranks=self._ranks, special_tokens=self._specials
        )

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Open a folder written by `save`. UserError when it is missing, torn, or its files disagree."""
        folder = Path(folder)
        try:
            meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
            definition = (folder / TOKENIZER_FILE).read_bytes().decode()
            ranks_text = (folder / RANKS_FILE).read_bytes()
        except FileNotFoundError as error:
            raise UserError(f"no tokenizer in {folder}: {error.filename} is missing; run the tokenizer stage") from None
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the tokenizer in {folder}: {error}; run the tokenizer stage again") from None
        tokenizer = cls(definition)
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            raise UserError(f"{folder / META_FILE} is not of format {FORMAT}; run the tokenizer stage again")
        hashes = {TOKENIZER_FILE: tokenizer.hash, RANKS_FILE: hashlib.sha256(ranks_text).hexdigest()}
        for name, found in hashes.items():
            if meta.get("sha256", {}).get(name) != found:
                raise UserError(f"{folder / name} was changed after it was written; run the tokenizer stage again")
        return tokenizer

    def save(self, folder: Path) -> None:
        """Write the three files into `folder`. meta.json names the others' hashes and comes last, so a torn
        save is seen by `load`."""
        folder = Path(folder)
        lines = (
            f"{base64.b64encode(piece).decode()} {rank}\n"
            for piece, rank in sorted(self._ranks.items(), key=lambda item: item[1])
        )
        ranks = "".join(lines)
        meta = {
            "format": FORMAT,
            "vocab_size": self.vocab_size,
            "bpe_size": len(self._ranks),
            "specials": self._specials,
            "split_pattern": SPLIT_PATTERN,
            "sha256": {TOKENIZER_FILE: self.hash, RANKS_FILE: hashlib.sha256(ranks.encode()).hexdigest()},
        }
        write_atomic(folder / TOKENIZER_FILE, self._definition)
        write_atomic(folder / RANKS_FILE, ranks)
        write_atomic(folder / META_FILE, json.dumps(meta, indent=1) + "\n")

    def special(self, name: str) -> int:
        """Id of a special such as "<|user_start|>". KeyError for a name that is not in SPECIALS."""
        return self._specials[name]

    def is_special(self, token: int) -> bool:
        return token >= len(self._ranks)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. A special's spelling inside it is ordinary text; only `special` gives a special's id."""
        return self._encoding.encode_ordinary(text)

    def encode_many(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """`encode` of each text on `threads` threads (default: `self.threads`)."""
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=threads or self.threads)

    def encode_array(self, text: str) -> np.ndarray:
        """`encode` as uint32 (n,), without a Python object per token; lets other threads run meanwhile."""
        try:
            return self._encoding.encode_to_numpy(text, allowed_special=set(), disallowed_special=())
        except UnicodeEncodeError:
            return self._encoding.encode_to_numpy(_well_formed(text), allowed_special=set(), disallowed_special=())

    @property
    def threads(self) -> int:
        """Threads worth encoding on: the processors of this process, at most 16."""
        return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The exact bytes; specials give their spelling. KeyError for an id outside the vocabulary."""
        return self._encoding.decode_bytes(list(ids))

    def decode(self, ids: Sequence[int], skip_specials: bool = False) -> str:
        """Text of `ids`; bytes that are not UTF-8 (half a character) become U+FFFD."""
        kept = [i for i in ids if not self.is_special(i)] if skip_specials else ids
        return self.decode_bytes(kept).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        """int32 (vocab_size,): bytes of text each id stands for; 0 for specials (they are not text, see bpb)."""
        return self._token_bytes.copy()

    @cached_property
    def _token_bytes(self) -> np.ndarray:
        sizes = np.zeros(self.vocab_size, dtype=np.int32)
        for piece, rank in self._ranks.items():
            sizes[rank] = len(piece)
        return sizes

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, hash={self.hash[:12]})"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train BPE on `texts` (read once, as a stream). `vocab_size` includes the specials.

    Text with fewer distinct pairs than that gives a smaller vocabulary. The result depends only on the words and
    their counts: the same texts in any order give the same file.

    Raises UserError for a vocab_size below 265 (256 bytes + specials) and for texts without a character.
    """
    if vocab_size < SMALLEST_VOCAB:
        raise UserError(
            f"vocab_size = {vocab_size} is too small: 256 bytes and {len(SPECIALS)} specials need "
            f"{SMALLEST_VOCAB}; set a larger vocab_size"
        )
    bpe = tokenizers.Tokenizer(models.BPE(byte_fallback=False))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    seen = _Counted(texts)
    bpe.train_from_iterator(seen, trainer=trainer)
    if not seen.characters:
        raise UserError("there is no text to train the tokenizer on; run the dataset stage and check its counts")
    bpe.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    return Tokenizer(bpe.to_str(pretty=False))


class _Counted:
    """Passes texts on to the trainer, counting characters: an empty stream must not look like success."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.characters += len(text)
            yield from _without_long_runs(_well_formed(text))


def _without_long_runs(text: str) -> Iterator[str]:
    """The text, in pieces where a run of letters or signs is longer than `LONGEST_WORD`."""
    begin = 0
    if max(map(len, text.split()), default=0) > LONGEST_WORD:
        for run in _LONG_RUN.finditer(text):
            yield text[begin : run.end()]
            begin = run.end()
    yield text[begin:]


def _well_formed(text: str) -> str:
    """Lone surrogates cannot cross into Rust: U+FFFD in their place, as tiktoken's own `encode_ordinary` has it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _ranks_of(definition: str) -> dict[bytes, int]:
    """{bytes: id} of the BPE part of a tokenizer.json."""
    try:
        model = json.loads(definition)["model"]
        vocab = model["vocab"]
        byte_of = _byte_of_character()
        ranks = {bytes(byte_of[c] for c in piece): rank for piece, rank in vocab.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"not a byte-level BPE tokenizer.json ({error!r}); run the tokenizer stage again") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or len(ranks) < 256:
        raise UserError("tokenizer.json has gaps in its ids; run the tokenizer stage again")
    return ranks


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, inverted: visible Latin-1 is itself, the rest is U+0100 and up."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in visible}
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    table.update({chr(0x100 + i): byte for i, byte in enumerate(hidden)})
    return table
