"""Tokenizer eval: bytes per token and exact round trips on text like the corpus, and unlike it; and beside them those
of GPT-2's and GPT-4's vocabularies where this machine has them."""

from __future__ import annotations

import hashlib
import inspect
import json

from picollm.data.hub_shards import HubShards
from picollm.data.hub_text import HubText, open_text
from picollm.evals.vocabularies import VOCABULARIES, cached
from picollm.run.errors import UserError
from picollm.run.stage import Outcome, StageContext, main
from picollm.text.tokenizer import SPECIALS, Tokenizer

GERMAN = "Wer früh beginnt, hat abends Zeit; wer spät beginnt, lernt, dass Eile die Wege nicht kürzer macht. "
GREEK = "Η θάλασσα ήταν ήρεμη και το μικρό καΐκι γύριζε στο λιμάνι πριν νυχτώσει. "
CHINESE = "春天来了,河边的柳树又绿了,孩子们在草地上放风筝。"
NUMBERS = "3.14159 2,718 1729 65537 -40 6.022e23 0x7ffe 2026-01-31 12:34:56 +49 30 901820 "
EMOJI = "Well done 🎉 — see you at 8 ⏰, bring 🥐 & ☕; naïve café, œuvre, ½ ≠ ⅓ "


def texts(validation: str) -> dict[str, str]:
    """Name to text, a few kB each; `validation`: of the validation text."""
    return {
        "validation text": validation,
        "python code": inspect.getsource(json) + inspect.getsource(inspect)[:60_000],
        "german": GERMAN * 20,
        "greek": GREEK * 20,
        "chinese": CHINESE * 20,
        "numbers": NUMBERS * 20,
        "emoji and accents": EMOJI * 20,
        "specials written out": " ".join(SPECIALS) * 20,
    }


def validation_text(ctx: StageContext) -> str:
    """The first 100,000 characters; of a Hub source, whose text may be gone, they are kept with the shards."""
    text = open_text(ctx.output("dataset", "text"))
    if isinstance(text, HubText):
        return HubShards.open(ctx.output("tokenizer", "shards")).excerpt()
    return "\n".join(text.val_texts())[:100_000]


def work(ctx: StageContext) -> Outcome:
    tokenizer = Tokenizer.load(ctx.output("tokenizer", "tokenizer"))
    table: dict[str, dict[str, float]] = {}
    known = {name: cached(name) for name in VOCABULARIES}
    others = {name: encoding for name, (encoding, _) in known.items() if encoding is not None}
    for name, text in texts(validation_text(ctx)).items():
        ids = tokenizer.encode(text)
        size = len(text.encode())
        exact = tokenizer.decode(ids) == text
        table[name] = {"bytes": size, "tokens": len(ids), "bytes_per_token": size / len(ids), "exact": exact}
        beside = {other: size / len(encoding.encode_ordinary(text)) for other, encoding in others.items()}
        table[name] |= beside
        ctx.eval(f"tokenizer/{name}", 0, {"bytes_per_token": size / len(ids), **beside})
        ctx.message(f"{name}: {size / len(ids):.2f} bytes per token" + ("" if exact else ", ROUND TRIP DIFFERS"))
    broken = [name for name, cell in table.items() if not cell["exact"]]
    if broken:
        raise UserError(f"decode(encode(text)) differs on {', '.join(broken)}: train the tokenizer again")
    for name, (_, state) in known.items():
        ctx.message(f"vocabulary of {name}: {state}")
    found = {"texts": table, "others": {name: state for name, (_, state) in known.items()}}
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    return Outcome(artifacts={"results": digest}, summary=found)


if __name__ == "__main__":
    main("tokenizer_eval", work)
