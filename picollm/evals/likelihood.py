"""How likely a model finds given continuations: what CORE, lm-eval and anything else that compares answers rests on.

Options of one question usually begin alike (few-shot examples and the question), so what they share is read once and
remembered (`KVCache`), and each option reads its own rest. Only the positions that are scored go through lm_head, a
chunk at a time: the logits of everything are never held.

B rows, T positions, D model width, N scored positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from picollm.infer.cache import KVCache, continuing, opening
from picollm.infer.decoder import Decoder
from picollm.train.loss import chunk_rows_for

SHARED_FROM = 16  # a shorter common beginning is not worth two passes


class Option(NamedTuple):
    """A row of ids (1 < length <= context) of which `ids[start:]` is scored; 1 <= start < length."""

    ids: list[int]
    start: int


class Score(NamedTuple):
    """`nll` in nats, summed over the `tokens` scored; `greedy`: each of them was the likeliest token."""

    nll: float
    tokens: int
    greedy: bool

    @property
    def mean(self) -> float:
        return self.nll / self.tokens


class _Row(NamedTuple):
    place: tuple[int, int]  # question, option
    option: Option


def cropped(ids: list[int], start: int, context: int) -> Option:
    """The last `context` ids: a row that is too long loses its beginning, and scored ids that had nothing before."""
    lost = max(0, len(ids) - context)
    return Option(ids[lost:], max(1, start - lost))


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many ids all rows begin with."""
    first, shortest = rows[0], min(map(len, rows))
    return next((i for i in range(shortest) if any(row[i] != first[i] for row in rows)), shortest)


@torch.inference_mode()
def scores(model: Decoder, questions: Sequence[Sequence[Option]], tokens_at_once: int) -> list[list[Score]]:
    """The score of every option of every question, in order.

    Rows are batched by length, `tokens_at_once` positions of activations and cache together (a single question's
    options always are). The result depends on the batches in its last bits only.
    """
    found: dict[tuple[int, int], Score] = {}
    whole: list[_Row] = []
    shared: list[tuple[int, list[_Row]]] = []
    for q, options in enumerate(questions):
        rows = [_Row((q, o), option) for o, option in enumerate(options)]
        before = min((option.start - 1 for option in options), default=0)
        prefix = min(before, common_prefix([option.ids for option in options])) if len(options) > 1 else 0
        if prefix >= SHARED_FROM:
            shared.append((prefix, rows))
        else:
            whole += rows
    whole.sort(key=lambda row: len(row.option.ids), reverse=True)
    for batch in _batches(whole, [(1, len(row.option.ids)) for row in whole], tokens_at_once):
        hidden = model.hidden(_padded([row.option.ids[:-1] for row in batch], model))
        _score(model, hidden, batch, [0] * len(batch), found)
    shared.sort(key=lambda group: (group[0], max(len(row.option.ids) for row in group[1])), reverse=True)
    sizes = [(len(rows), max(len(row.option.ids) for row in rows)) for _, rows in shared]
    for groups in _batches(shared, sizes, tokens_at_once):
        _score_shared(model, groups, found)
    return [[found[q, o] for o in range(len(options))] for q, options in enumerate(questions)]


def _batches(items: list, sizes: list[tuple[int, int]], budget: int) -> Iterator[list]:
    """Neighbours whose (rows, length) together, padded to the longest, keep to the budget; at least one at a time."""
    batch: list = []
    rows = longest = 0
    for item, (more, length) in zip(items, sizes, strict=True):
        if batch and (rows + more) * max(longest, length) > budget:
            yield batch
            batch, rows, longest = [], 0, 0
        batch.append(item)
        rows, longest = rows + more, max(longest, length)
    if batch:
        yield batch


def _score_shared(model: Decoder, groups: list[tuple[int, list[_Row]]], found: dict[tuple[int, int], Score]) -> None:
    """Read each question's common beginning into the slot of its first option, copy it, read the rests."""
    batch = [row for _, rows in groups for row in rows]
    held = [prefix for prefix, rows in groups for _ in rows]
    rests = [row.option.ids[prefix - 1 : -1] for row, prefix in zip(batch, held, strict=True)]
    longest = max(map(len, rests)) - 1  # the id before the rest is only looked back at
    # The last id of a row is not read, so that what padding writes beyond the context falls where nothing is.
    length = min(max(held) + longest, model.shape.seq_len)
    cache = KVCache(model.shape, len(batch), length, device=model.device, dtype=model.dtype)
    firsts, at = [], 0
    for _, rows in groups:
        firsts.append(at)
        at += len(rows)
    beginnings = [rows[0].option.ids[:prefix] for prefix, rows in groups]
    ids = _padded(beginnings, model)
    model.hidden(ids, opening(cache, firsts, ids.shape[1]))
    for first, (prefix, rows) in zip(firsts, groups, strict=True):
        cache.copy(first, range(first + 1, first + len(rows)), prefix)
    span = continuing(cache, range(len(batch)), held, longest, model.windows)
    _score(model, model.hidden(_padded(rests, model), span), batch, held, found)


def _padded(rows: list[list[int]], model: Decoder) -> Tensor:
    """int64 (B, T), filled up on the right: causal attention never looks there."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = torch.tensor(row)
    return ids.to(model.device)


def _score(
    model: Decoder, x_BTD: Tensor, batch: list[_Row], offsets: list[int], found: dict[tuple[int, int], Score]
) -> None:
    """Scores of the batch; row b of `x_BTD` begins at position `offsets[b]`."""
    counts = [len(row.option.ids) - row.option.start for row in batch]
    places = [
        b * x_BTD.shape[1] + position - offset
        for b, (row, offset) in enumerate(zip(batch, offsets, strict=True))
        for position in range(row.option.start - 1, len(row.option.ids) - 1)
    ]
    wanted = [i for row in batch for i in row.option.ids[row.option.start :]]
    x_ND = x_BTD.flatten(0, 1)[torch.tensor(places, device=x_BTD.device)]
    target_N1 = torch.tensor(wanted, device=x_BTD.device)[:, None]
    chunk = chunk_rows_for(len(places), model.shape.vocab_size, x_ND.device)
    nlls, hits = [], []
    for i in range(0, len(places), chunk):
        logits = model.logits(x_ND[None, i : i + chunk])[0]
        target = target_N1[i : i + chunk]
        nlls.append(logits.logsumexp(-1) - logits.gather(1, target)[:, 0])
        hits.append(logits.argmax(-1) == target[:, 0])
    nll = torch.cat(nlls).cpu().double()
    hit = torch.cat(hits).cpu()
    for row, part, right in zip(batch, nll.split(counts), hit.split(counts), strict=True):
        found[row.place] = Score(part.sum().item(), len(part), bool(right.all()))
