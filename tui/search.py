"""What a person types to search for, as a regular expression that cannot hold anybody up.

The `regex` package matches without the interpreter's lock and gives up after a time, which `re` does not: there an
expression such as `(a|b+)+$` would hold the screen for hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import regex

PATIENCE_S = 0.5
GLANCE_S = 0.02
"""For a short text on the screen's own thread."""


class TooSlow(Exception):
    """The expression took longer than it may over one text."""


class Query:
    """A search as it was typed: any case unless it has a capital; what is no regular expression is taken as plain
    text, and `doubt` says why."""

    def __init__(self, words: str, any_case: bool = False) -> None:
        import regex  # takes a while, and most who look at charts and logs search for nothing

        self.doubt = ""
        exact = not any_case and any(letter.isupper() for letter in words)
        flags = regex.MULTILINE | (0 if exact else regex.IGNORECASE)
        try:
            self._pattern = regex.compile(words, flags)
        except (regex.error, ValueError, RecursionError, OverflowError, MemoryError) as error:
            self._pattern = regex.compile(regex.escape(words, literal_spaces=True), flags)
            self.doubt = str(error)

    def search(self, text: str, at: int = 0, patience: float = 0.0) -> regex.Match[str] | None:
        """The first match from `at` on. Raises `TooSlow`."""
        try:
            return self._pattern.search(text, at, timeout=patience or PATIENCE_S, concurrent=True)
        except TimeoutError:
            raise TooSlow from None

    def spans(self, text: str, patience: float = 0.0) -> Iterator[tuple[int, int]]:
        """Where the matches in `text` are, but for empty ones. Raises `TooSlow`."""
        try:
            for match in self._pattern.finditer(text, timeout=patience or PATIENCE_S, concurrent=True):
                if match.end() > match.start():
                    yield match.span()
        except TimeoutError:
            raise TooSlow from None


@lru_cache(maxsize=64)
def query(words: str, any_case: bool = False) -> Query | None:
    """`Query`, kept; None for no words."""
    return Query(words, any_case) if words else None
