"""Does the model know who it is? The smoke test at the end of SFT: every held-out phrasing, greedily.

identity: 91.2 % of 228 held-out questions (86.8-94.3): it mostly knows who it is
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from picollm.evals.chat import Result, evaluate
from picollm.infer.engine import Engine
from picollm.tasks.identity import Identity
from picollm.text.tokenizer import Tokenizer

KNOWS, MOSTLY = 0.95, 0.75


def identity_check(
    engine: Engine, tok: Tokenizer, rows: Path | str = "", on_progress: Callable[[int, int], None] | None = None
) -> Result:
    """Accuracy on all held-out phrasings, for the name and maker that `rows` (the built-in ones if empty) teach.

    The same on every rank; all of them must call it. `on_progress`: as in `evaluate`. Raises `UserError` when the rows
    are not as they were signed.
    """
    return evaluate(Identity(path=rows) if rows else Identity(), engine, tok, on_progress=on_progress)


def verdict(result: Result) -> str:
    """What that says, in one line."""
    if result.accuracy >= KNOWS:
        says = "it knows who it is"
    elif result.accuracy >= MOSTLY:
        says = "it mostly knows who it is"
    else:
        says = "it does not know who it is yet; more sft.steps help, or a larger share of identity in sft.mixture"
    return (
        f"identity: {100 * result.accuracy:.1f} % of {result.n} held-out questions "
        f"({100 * result.low:.1f}-{100 * result.high:.1f}): {says}"
    )
