"""Midtraining and SFT: the same stage on a mixture of conversations, with other weights in the loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from picollm.data.chat_loader import ChatLoader
from picollm.data.publish import sha256
from picollm.evals.chat import Result
from picollm.evals.identity import identity_check, verdict
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.planned import fingerprint
from picollm.run.stage import Outcome, StageContext
from picollm.tasks.identity import verify
from picollm.tasks.mixing import mix, prepare
from picollm.text.tokenizer import Tokenizer
from picollm.train.batch import Batch
from picollm.train.loop import Every
from picollm.train.readings import Reader, held_out
from picollm.train.schedule import Schedule
from picollm.train.session import open_session


def train_on_conversations(ctx: StageContext, parent: str, *, all_tokens: bool) -> Outcome:
    """Train from `parent`'s checkpoint on the stage's mixture; `all_tokens`: user turns count in the loss too.

    The identity rows are verified against their checksum first. Raises `UserError` when they differ from it or from
    those of the identity stage, or when the person's own conversations cannot be read.
    """
    settings = getattr(ctx.config, ctx.name)
    length, seed = ctx.config.model.seq_len, ctx.config.run.seed
    identity = ctx.rank0_first(lambda: prepared(ctx))
    custom = Path(settings.custom).expanduser() if settings.custom else None
    content = {f"{ctx.name}.custom": file_hash(custom)} if custom else {}
    session = open_session(ctx)
    ctx.phase("mix")
    tok = session.tokenizer
    files: dict[str, Any] = {"custom": str(custom or ""), "identity": str(identity)}
    mixed = mix(settings.mixture, tok, length + 1, seed, **files)
    content |= {f"{ctx.name} {name}": fingerprint(source["sha256"]) for name, source in mixed.sources.items()}
    held = held_out(settings.mixture, tok, length + 1, seed, settings.eval_items, **files)
    reader = Reader(session, held, settings.rows, all_tokens=all_tokens)
    loader = ChatLoader(
        mixed.conversations,
        length,
        settings.rows,
        seed,
        tok.bos_id,
        rank=session.ranks.rank,
        world=session.ranks.world,
        all_tokens=all_tokens,
    )
    for problem in mixed.problems:
        ctx.warning(problem)
    if mixed.dropped:
        ctx.warning(f"{mixed.dropped:,} conversations have a first exchange of over {length} tokens and were left out")
    if mixed.cut:
        ctx.message(f"{mixed.cut:,} conversations are longer than {length} tokens and end at an earlier answer")
    shares = ", ".join(f"{name} {rows:,}" for name, rows in mixed.rows.items())
    ctx.message(
        f"{len(mixed.conversations):,} conversations in {loader.rows_per_epoch:,} rows, "
        f"{100 * loader.fullness:.1f} % full: {shares}"
    )

    def batches(step: int) -> Iterator[Batch]:
        inputs, targets, weights, denom = loader.batch(step)
        return session.split(Batch.from_numpy(inputs, targets, weights, denom), settings.rows)

    summary: dict[str, Any] = {}

    def who(step: int) -> None:
        """All ranks ask together."""
        reader.ask(lambda engine: tell(step, identity_check(engine, tok, identity, session.looking(step))))

    def tell(step: int, found: Result) -> None:
        ctx.eval("identity_check", step, {"accuracy": found.accuracy, "low": found.low, "high": found.high}, n=found.n)
        ctx.message(verdict(found))
        summary["identity"] = {key: getattr(found, key) for key in ("accuracy", "low", "high", "n")}

    evals = [Every(0, reader.read, seconds=settings.eval_every, at_start=True)]
    if ctx.name == "sft" and any(settings.mixture[name] for name in settings.mixture if name.startswith("identity")):
        evals.append(Every(0, who))
    summary |= {
        "conversations": mixed.rows,
        "conversation_tokens": mixed.tokens,
        "cut": mixed.cut,
        "dropped": mixed.dropped,
        "sources": mixed.sources,
        "epochs": loader.epoch(settings.steps),
        "fullness": loader.fullness,
    }
    return session.train(
        batches,
        Schedule(settings.steps, 0, settings.warmdown, settings.final_lr),
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        reuse_moments=settings.reuse_moments,
        parent=parent,
        evals=evals,
        extra_metrics=lambda step: {"epoch": loader.epoch(step)},
        summary=summary,
        content=content,
    )


def prepared(ctx: StageContext) -> Path:
    """The verified identity rows; what the mixture needs of the Hub is then here, and what is large is rendered.

    For one rank ahead of the others, which find it done.
    """
    settings, identity = getattr(ctx.config, ctx.name), verified_identity(ctx.run)

    def look(done: int, rows: int) -> None:
        ctx.progress(done, rows)
        ctx.raise_if_stopped()

    tok = Tokenizer.load(ctx.output("tokenizer", "tokenizer"))
    length, seed = ctx.config.model.seq_len, ctx.config.run.seed
    mirrors = ctx.config.data.mirrors
    prepare(
        settings.mixture, tok, length + 1, seed, identity=str(identity), mirrors=mirrors, look=look, say=ctx.message
    )
    return identity


def verified_identity(run: Run) -> Path:
    """The rows that the identity stage took, still the same. Raises `UserError` when they are not."""
    path = run.output("identity", "rows")
    done = run.finished("identity")
    if done is None or verify(path).sha256 != done.artifacts.get("rows"):
        raise UserError(f"{path} has changed since the identity stage; run it again")
    return path


def file_hash(path: Path) -> str:
    """sha256 of a file's content. Raises `UserError` when it cannot be read."""
    try:
        return sha256(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give the path of a .jsonl file") from None
