"""Make your own chatbot from raw text. For notebooks and scripts: `from picollm import load` (docs/library.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from picollm.api import Model, load

__all__ = ["Model", "load"]


def __getattr__(name: str) -> Any:
    """The library is loaded when it is first asked for: the app and the command line import this package, too."""
    if name in __all__:
        from picollm import api

        return getattr(api, name)
    raise AttributeError(f"module 'picollm' has no attribute {name!r}")
