"""What midtraining and SFT are read on while they go: conversations and questions that the mixture holds out.

Readings change nothing of the training: neither weights nor random numbers. They are the same for any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
import numpy as np
import torch

from picollm.data.packing import fill, plan_rows
from picollm.evals.bpb import text_loss
from picollm.evals.chat import evaluate
from picollm.infer.engine import Engine
from picollm.tasks import Example, Task, make
from picollm.text.chat import Rendered, render
from picollm.text.tokenizer import Tokenizer
from picollm.train.session import Session

CONVERSATIONS = 256
"""Held-out conversations in a loss, shared among the tasks as the mixture shares them; each has a few."""
FEWEST = 4


class HeldOut(msgspec.Struct, kw_only=True):
    """`conversations`: (ids, mask) that nobody trains on. `asked`: the tasks that can be asked, with their items."""

    conversations: list[Rendered] = []
    asked: dict[str, tuple[Task, list[Example]]] = {}


def held_out(
    table: Mapping[str, int],
    tok: Tokenizer,
    max_tokens: int,
    seed: int,
    items: int,
    *,
    custom: str = "",
    identity: str = "",
) -> HeldOut:
    """What the tasks of a mixture hold out: conversations of at most `max_tokens` tokens and `items` questions of each.

    A task without held-out examples is left out. The arguments are those of `picollm.tasks.mixing.mix`.
    """
    found = HeldOut()
    counts = {name: count for name, count in table.items() if count}
    files = {"identity": identity, "custom": custom}
    if custom:
        counts["custom"] = max(1, sum(counts.values()) // 10)
    total = sum(counts.values())
    for name, count in counts.items():
        share = max(FEWEST, math.ceil(CONVERSATIONS * count / total))
        path = files.get(name.partition(":")[0])
        more = {"path": path} if path else {}
        task = make(name, seed=seed, heldout_rows=max(share, items), **more)
        task.fetch()
        examples = task.heldout()[: max(share, items)]
        rendered = [render(example.messages, tok, max_tokens) for example in examples[:share]]
        found.conversations += [(ids, mask) for ids, mask in rendered if any(mask)]
        if items and examples and not task.unavailable():
            found.asked[name] = (task, list(examples[:items]))
    return found


class Reader:
    """`read(step)` reports the loss on held-out conversations, and the accuracy on a few questions of each task.

    Where there is no memory left for answering beside training, that is said once, and only the loss is reported.

    Args:
        all_tokens: the loss counts every token of a conversation, as in midtraining, instead of the assistant's.
        rows: of one batch over all ranks.
    """

    def __init__(self, session: Session, held: HeldOut, rows: int, *, all_tokens: bool) -> None:
        self.session, self.held = session, held
        self.rows = max(1, session.eval_rows(rows) // session.ranks.world)
        self.all_tokens = all_tokens
        self._room = True

    def read(self, step: int) -> float | None:
        """Returns the loss in nats per counted token; None when nothing is held out. May raise `StopRequested`."""
        loss = self._loss(step) if self.held.conversations else None
        if self.held.asked:
            self.ask(lambda engine: self._questions(engine, step))
        return loss

    def ask(self, about: Callable[[Engine], None]) -> None:
        """`about(engine)` on all ranks. The engine is not kept: training needs the memory."""
        engine = self.session.engine() if self._room else None
        try:
            if engine is not None:
                about(engine)
                return
        except torch.OutOfMemoryError:  # on all ranks, see `evaluate`
            pass
        if self._room:
            self._room = False
            self.session.ctx.warning("no memory left to ask the model questions; training goes on without them")

    def _questions(self, engine: Engine, step: int) -> None:
        look = self.session.looking(step)
        for name, (task, items) in self.held.asked.items():
            result = evaluate(task, engine, self.session.tokenizer, examples=items, on_progress=look)
            self.session.ctx.eval(
                name, step, {"accuracy": result.accuracy, "low": result.low, "high": result.high}, n=result.n
            )

    def _loss(self, step: int) -> float:
        every_token = np.ones(self.session.model.shape.vocab_size, dtype=np.int64)  # marks are to be learnt, too
        found = text_loss(self.session.model, self._batches(), every_token)
        self.session.ctx.eval("val", step, {"loss": found.loss}, n=found.tokens)
        return found.loss

    def _batches(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """This rank's rows: every world-th one."""
        conversations, length = self.held.conversations, self.session.model.shape.seq_len
        plan = plan_rows([len(ids) for ids, _ in conversations], length + 1)
        mine: Sequence[int] = range(self.session.ranks.rank, len(plan), self.session.ranks.world)
        for first in range(0, len(mine), self.rows):
            rows = [plan[row] for row in mine[first : first + self.rows]]
            yield tuple(fill(conversations, rows, length, self.session.tokenizer.bos_id, all_tokens=self.all_tokens))  # type: ignore[misc]
