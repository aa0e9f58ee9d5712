"""Types that more than one thread may be the first to read."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T", bound=type[msgspec.Struct])


def complete(kind: T) -> T:
    """Class decorator: msgspec learns the type now, while one thread imports its module, not when it is first read.

    It keeps what it has learnt in the type and lets other threads run while it learns: two that read the same type for
    the first time at once crash the process (seen with msgspec 0.22). The type's fields must be defined by then.
    """
    msgspec.json.Decoder(kind)
    return kind
