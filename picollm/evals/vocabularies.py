"""Published vocabularies to compare with, GPT-2's and GPT-4's, where tiktoken has them on this machine already.

Nothing is ever downloaded: tiktoken is asked only after its file was found in its cache folder, with the right content,
so that it has no reason to.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import msgspec
import tiktoken

HOST = "https://openaipublic.blob.core.windows.net/encodings/"


class Vocabulary(msgspec.Struct, frozen=True):
    """`encoding`: its name in tiktoken; `url`: where that would get it; `sha256`: of the file."""

    encoding: str
    url: str
    sha256: str


VOCABULARIES = {
    "GPT-2": Vocabulary(
        "r50k_base",
        HOST + "r50k_base.tiktoken",
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    ),
    "GPT-4": Vocabulary(
        "cl100k_base",
        HOST + "cl100k_base.tiktoken",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
}


def cache_folder() -> Path | None:
    """Where tiktoken keeps files, as its documentation says; None where it is told to keep none."""
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if name in os.environ:
            return Path(os.environ[name]) if os.environ[name] else None
    return Path(tempfile.gettempdir()) / "data-gym-cache"


def cached(name: str) -> tuple[tiktoken.Encoding | None, str]:
    """The vocabulary `name` of `VOCABULARIES`, or None, and in words how it is."""
    wanted, folder = VOCABULARIES[name], cache_folder()
    if folder is None:
        return None, "not cached (tiktoken's cache is off)"
    try:
        content = (folder / hashlib.sha1(wanted.url.encode()).hexdigest()).read_bytes()
    except OSError:
        return None, f"not cached in {folder}"
    if hashlib.sha256(content).hexdigest() != wanted.sha256:
        return None, f"its file in {folder} is damaged"
    encoding = tiktoken.get_encoding(wanted.encoding)
    return encoding, f"{encoding.n_vocab:,} ids, tiktoken's {wanted.encoding}"
