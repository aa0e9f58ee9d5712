"""Continuous batching (Yu et al. 2022, Orca): answers join and leave between two steps, and a step serves all of them.

    waiting --read the prompt, in chunks--> a slot of the cache --one token a step--> finished, the slot is free

A step decodes one token (on a GPU a few) for every row that has its prompt read, and then reads at most one chunk of
prompts. The slots in use are always the first ones: a row that leaves is replaced by the last. What a tool says is read
like a prompt.

On a GPU nothing waits for a token: rows run ahead of what the host has seen, and what a row was given beyond its end,
or beyond the call of a tool, is thrown away.
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from picollm.infer.cache import KVCache, continuing, next_token, opening
from picollm.infer.decoder import Decoder
from picollm.infer.graphs import StepGraphs
from picollm.infer.rows import Chunk, Row
from picollm.infer.sampling import (
    Logprobs,
    Sampling,
    Settings,
    TokenLogprob,
    exact,
    logprobs_of,
    penalise,
    pick,
    ranks_of,
    uniforms,
)

CHUNK = 256  # tokens of prompts read between two tokens of the others
ALONE = 8 * CHUNK  # when no other waits
SHORTEST_CACHE = 64
FEW_RANKS = 64  # on a GPU, rows choose among this many tokens or among all


@dataclass(eq=False)
class Request:
    """One answer on its way.

    Attributes:
        unread: tokens that must be in the cache before the next one can be chosen: the prompt, a tool's output.
        held: tokens in the cache.
        turn: goes up when what was decoded ahead became void.
        news: text, ids and records since the last `take`.
        error: why there will be no more.
    """

    row: Row
    prompt: list[int]
    sampling: Sampling
    seed: int
    unread: list[int] = field(default_factory=list)
    held: int = 0
    slot: int = -1
    turn: int = 0
    text: str = ""
    ids: list[int] = field(default_factory=list)
    records: list[TokenLogprob] = field(default_factory=list)
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.unread = self.prompt

    @property
    def done(self) -> bool:
        return self.row.finish_reason is not None or self.error is not None

    @property
    def longest(self) -> int:
        """Most tokens of prompt and answer."""
        return len(self.prompt) + self.row.limit

    def push(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob] | None) -> None:
        """Take tokens that were decoded one after another, up to the end of the answer or the call of a tool."""
        row = self.row
        for j, token in enumerate(tokens):
            self.text += row.push(token, logprob=logprobs[j] if logprobs else None)
            self.ids.append(token)
            if row.queue and not row.finish_reason:
                self.turn += 1
                self.held = len(self.prompt) + len(row.ids) - 1
                self.unread = [token, *row.queue]
                while row.queue and not row.finish_reason:
                    self.ids.append(row.queue.popleft())
                    self.text += row.push(self.ids[-1], forced=True)
                break
            if row.finish_reason:
                break
        self.records += row.take_logprobs()

    def cancel(self) -> None:
        if not self.done:
            self.text += self.row.cancel()
            self.records += self.row.take_logprobs()

    def take(self) -> Chunk:
        """What is new."""
        chunk = Chunk(self.text, self.ids, self.records, self.row.calls)
        self.text, self.ids, self.records, self.row.calls = "", [], [], []
        return chunk


@dataclass
class Issued:
    """Tokens under way to the host: (rows, steps), and whose they are."""

    owners: list[tuple[int, Request, int]]  # row of the tensors, request, its turn
    tokens: Tensor
    logprobs: list[Logprobs]  # by step; empty when nobody asked
    there: Callable[[], None]  # returns once the copies have arrived


class Choice(NamedTuple):
    """What choosing a token needs to compute for some rows."""

    most: int  # likeliest tokens that any of them chooses among
    penal: bool
    top: int | None  # likeliest tokens to report, None for no log-probabilities


class Scheduler:
    """The rows of one engine. Not for two threads at once: the engine holds `lock` around each call.

    Args:
        ahead: tokens decoded for a row before the host looks at any of them.
        cache_bytes: the cache never grows beyond it for a second row; a row for which there is no room waits. While
            it grows, the old and the new one exist together.
    """

    def __init__(self, model: Decoder, *, max_rows: int, ahead: int, cache_bytes: int) -> None:
        self.model, self.max_rows, self.ahead, self.cache_bytes = model, max_rows, ahead, cache_bytes
        self.lock = threading.RLock()
        self.on_gpu = model.device.type == "cuda"
        self.graphs = StepGraphs(lambda text: warnings.warn(text, stacklevel=2))
        self.waiting: deque[Request] = deque()
        self.seated: list[Request] = []  # by slot
        self.flying: deque[Issued] = deque()
        self.cache: KVCache | None = None

    def join(self, request: Request) -> None:
        self.waiting.append(request)

    def leave(self, request: Request) -> None:
        """Free the request's place, whatever it was at."""
        if request.slot < 0:
            if request in self.waiting:
                self.waiting.remove(request)
            return
        last = self.seated.pop()
        if last is not request:
            self.seated[request.slot] = last
            with torch.inference_mode():
                self._move(last, request.slot)
            last.slot = request.slot
        request.slot = -1
        if not self.seated and not self.on_gpu:  # there, graphs have its address
            self.cache = None

    @torch.inference_mode()
    def step(self) -> None:
        """One round of tokens, one chunk of prompts. What fails is noted in the requests it failed for."""
        ready = [request for request in self.seated if not request.unread]
        self._attempt(self._decode, ready)
        readers, length = self._next_to_read(bool(ready))
        self._attempt(lambda requests: self._read(requests, length), readers)
        while len(self.flying) > (2 if ready and self.on_gpu else 0):
            self._land(self.flying.popleft())

    def _attempt(self, work: Callable[[list[Request]], None], requests: list[Request]) -> None:
        if not requests:
            return
        try:
            work(requests)
        except Exception as error:
            for request in requests:
                self._fail(request, error)

    def _fail(self, request: Request, error: Exception) -> None:
        request.error = error
        self.leave(request)

    # Reading

    def _next_to_read(self, ready: bool) -> tuple[list[Request], int]:
        """Rows that go on with their prompt or a tool's output; else rows that begin, given their slots.

        With them comes how many tokens of each to read.
        """
        budget = CHUNK if ready else ALONE
        going_on = [request for request in self.seated if request.unread]
        if going_on:
            longest = min(max(len(request.unread) for request in going_on), budget)
            return going_on[: max(1, budget // longest)], longest
        chosen: list[Request] = []
        prompts: set[tuple[int, ...]] = set()
        longest = 0
        while self.waiting and len(self.seated) < self.max_rows:
            request = self.waiting[0]
            size, kinds = max(longest, len(request.unread)), prompts | {tuple(request.unread)}
            if chosen and size * len(kinds) > budget:
                break
            try:
                if not self._room_for(request):
                    break
            except Exception as error:  # of memory, as a rule: it is this request that there is none for
                self._fail(request, error)
                continue
            longest, prompts = size, kinds
            request.slot = len(self.seated)
            self.seated.append(self.waiting.popleft())
            chosen.append(request)
        for request in chosen:
            self._seat(request)
        return chosen, min(longest, budget)

    def _room_for(self, request: Request) -> bool:
        """Make the cache large enough; False if that is not allowed now."""
        shape, dtype = self.model.shape, self.model.dtype
        slots = least = min(_power(len(self.seated) + 1), self.max_rows)
        length = own = min(_power(max(request.longest, SHORTEST_CACHE)), shape.seq_len)
        if self.cache is not None:
            slots, length = max(slots, self.cache.slots), max(length, self.cache.length)
            if (slots, length) == (self.cache.slots, self.cache.length):
                return True
        if slots * length * KVCache.token_bytes(shape, dtype) > self.cache_bytes:
            if self.seated:
                return False
            self.cache, slots, length = None, least, own  # alone it gets what it needs, and no more
        if self.cache is None:
            cache = KVCache(shape, slots, length, device=self.model.device, dtype=dtype)
        else:
            cache = self.cache.resized(slots, length)
        self._make_state(slots)
        self.cache = cache  # last: where memory ends half-way, those under way keep what they have
        self.graphs.forget()
        return True

    def _make_state(self, slots: int) -> None:
        device, V = self.model.device, self.model.shape.vocab_size
        place = torch.zeros(slots, dtype=torch.int64, device=device)  # where the next token to be read stands
        tail = torch.zeros(slots, 2, dtype=torch.int64, device=device)  # it, after the one before it
        u = torch.zeros(slots, self.model.shape.seq_len + 1, dtype=exact(device), device=device)  # by place
        seen = torch.zeros(slots, V, dtype=torch.bool, device=device)
        settings = Settings.empty(slots, device)
        if self.seated:
            for new, present in zip((place, tail, u, seen, *settings), self._state(), strict=True):
                new[: present.shape[0]] = present
        self.place, self.tail, self.u, self.seen, self.settings = place, tail, u, seen, settings

    def _state(self) -> list[Tensor]:
        return [self.place, self.tail, self.u, self.seen, *self.settings]

    def _move(self, request: Request, slot: int) -> None:
        assert self.cache is not None
        self.cache.copy(request.slot, [slot], min(request.held, self.cache.length))
        for tensor in self._state():
            tensor[slot] = tensor[request.slot]

    def _seat(self, request: Request) -> None:
        sampling, start = request.sampling, len(request.prompt)
        self.settings.put(request.slot, sampling, self.model.shape.vocab_size)
        if sampling.temperature:
            numbers = torch.from_numpy(uniforms([request.seed], request.row.limit)[0])
            self.u[request.slot, start : start + len(numbers)] = numbers.to(self.u.dtype).to(self.u.device)

    def _mark_seen(self, request: Request) -> None:
        self.seen[request.slot] = False
        self.seen[request.slot, torch.tensor(request.prompt + request.row.ids, device=self.seen.device)] = True

    def _read(self, requests: list[Request], T: int) -> None:
        """Read the next T tokens of these rows together; equal prompts that begin are read once."""
        cache = self.cache
        assert cache is not None
        source: dict[tuple[int, ...], Request] = {}
        copies: list[tuple[Request, Request]] = []
        begin = requests[0].held == 0
        if begin:
            for request in requests:
                first = source.setdefault(tuple(request.unread), request)
                if first is not request:
                    copies.append((first, request))
        readers = list(source.values()) if begin else requests
        slots, held = [r.slot for r in readers], [r.held for r in readers]
        counts = [min(T, len(r.unread)) for r in readers]
        lead = 0 if begin else 1
        ids = torch.zeros(len(readers), lead + T, dtype=torch.int64)
        for b, r in enumerate(readers):
            if lead:
                ids[b, 0] = (r.prompt + r.row.ids)[r.held - 1]
            ids[b, lead : lead + counts[b]] = torch.tensor(r.unread[: counts[b]])
        span = opening(cache, slots, T) if begin else continuing(cache, slots, held, T, self.model.windows)
        x = self.model.hidden(ids.to(self.model.device), span)
        for b, r in enumerate(readers):
            r.held += counts[b]
            r.unread = r.unread[counts[b] :]
        for first, request in copies:
            cache.copy(first.slot, [request.slot], first.held)
            request.held, request.unread = first.held, first.unread
        # A step decodes every slot. Those that are not there yet must write beyond what they hold.
        which = torch.tensor([r.slot for r in requests], device=x.device)
        self.place[which] = torch.tensor([r.held for r in requests], device=x.device)
        at = {id(r): b for b, r in enumerate(readers)} | {id(r): readers.index(first) for first, r in copies}
        done = [r for r in requests if not r.unread]
        if not done:
            return
        rows = torch.tensor([at[id(r)] for r in done], device=x.device)
        last = torch.tensor([counts[at[id(r)]] - 1 for r in done], device=x.device)
        logits = self.model.logits(x[rows, last][:, None])[:, 0]
        which = torch.tensor([r.slot for r in done], device=x.device)
        for r in done:
            if r.sampling.repetition_penalty != 1:
                self._mark_seen(r)
        tokens, logprobs = self._choose(logits, which, self._choice(done))
        self.tail[which, 0] = torch.tensor([(r.prompt + r.row.ids)[-1] for r in done], device=x.device)
        self.tail[which, 1] = tokens
        self._issue(done, list(range(len(done))), [tokens], [logprobs] if logprobs else [])

    # Decoding

    def _decode(self, ready: list[Request]) -> None:
        assert self.cache is not None
        count = len(self.seated)
        places = [request.held for request in ready]
        alike = not self.on_gpu and count == len(ready) and min(places) == max(places)
        choice, tokens, logprobs = self._choice(self.seated), [], []
        for step in range(self.ahead):
            keys = min(max(places) + 1 + step, self.cache.length)
            rows = count
            if self.on_gpu:
                rows, keys = min(_power(count), self.cache.slots), min(_power(keys), self.cache.length)
                advance = partial(self._advance, rows, keys, choice, alike=False)
                made = self.graphs.run((rows, keys, choice), advance, [self.place, self.tail, self.seen])
            else:
                made = self._advance(rows, keys, choice, alike=alike)
            tokens.append(made[0])
            logprobs += [Logprobs(*made[1:])] if choice.top is not None else []
        for request in ready:
            request.held += self.ahead
        self._issue(ready, [request.slot for request in ready], tokens, logprobs)

    def _advance(self, rows: int, keys: int, choice: Choice, *, alike: bool) -> list[Tensor]:
        """Read each row's next token and choose the one after it: tokens, and the parts of `Logprobs` if asked for."""
        assert self.cache is not None
        place, tail = self.place[:rows], self.tail[:rows]
        x = self.model.hidden(tail, next_token(self.cache, place, keys, self.model.windows, alike=alike))
        logits = self.model.logits(x)[:, 0]
        place.add_(1).clamp_(max=self.cache.length - 1)
        tokens, logprobs = self._choose(logits, slice(0, rows), choice)
        tail[:, 0] = tail[:, 1]
        tail[:, 1] = tokens
        return [tokens, *(logprobs or ())]

    def _choice(self, requests: Sequence[Request]) -> Choice:
        V = self.model.shape.vocab_size
        most = max(ranks_of(request.sampling, V) for request in requests)
        penal = any(request.sampling.repetition_penalty != 1 for request in requests)
        top = max((r.sampling.top_logprobs for r in requests if r.sampling.logprobs), default=None)
        if self.on_gpu:  # few kinds of graphs
            most = most if most == 1 else min(FEW_RANKS, V) if most <= FEW_RANKS else V
            top = top and _power(top)
        return Choice(most, penal, top)

    def _choose(self, logits: Tensor, which: slice | Tensor, choice: Choice) -> tuple[Tensor, Logprobs | None]:
        """A token for each of the slots `which`."""
        settings, allowed = self.settings.rows(which), logits
        if choice.penal:
            allowed = penalise(logits, self.seen[which], settings.penalty)
        u = logits[:, 0]
        if choice.most > 1:
            u = self.u[which].gather(1, self.place[which][:, None])[:, 0]
        tokens = pick(allowed, settings, u, choice.most)
        if choice.penal:
            self.seen[which] = self.seen[which].scatter(1, tokens[:, None], True)
        return tokens, None if choice.top is None else logprobs_of(logits, tokens, choice.top)

    # From the device to the rows

    def _issue(self, requests: list[Request], rows: list[int], tokens: list[Tensor], logprobs: list[Logprobs]) -> None:
        """Let the copies of these tokens begin."""
        owners = [(row, request, request.turn) for row, request in zip(rows, requests, strict=True)]
        together = torch.stack(tokens, dim=1)
        if not self.on_gpu:
            self.flying.append(Issued(owners, together, logprobs, lambda: None))
            return
        copied = _to_host(together)
        records = [Logprobs(*(_to_host(part) for part in step)) for step in logprobs]
        event = torch.cuda.Event()
        event.record()
        self.flying.append(Issued(owners, copied, records, event.synchronize))

    def _land(self, issued: Issued) -> None:
        """Give rows their tokens, unless these have become void meanwhile."""
        issued.there()
        tokens = issued.tokens.tolist()
        scores = [tuple(part.tolist() for part in step) for step in issued.logprobs]
        for row, request, turn in issued.owners:
            if request.done or request.turn != turn:
                continue
            records = None
            if request.sampling.logprobs:
                top = request.sampling.top_logprobs
                records = [
                    TokenLogprob(
                        token, chosen[row], tuple(zip(ids[row][:top], values[row][:top], strict=True)), entropy[row]
                    )
                    for token, (chosen, ids, values, entropy) in zip(tokens[row], scores, strict=True)
                ]
            try:
                request.push(tokens[row], records)
            except Exception as error:
                self._fail(request, error)
            if request.done:
                self.leave(request)


def _power(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << (n - 1).bit_length()


def _to_host(tensor: Tensor) -> Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
