"""A run folder that holds a tokenizer and tiny untrained models, as if stages had made them."""

from __future__ import annotations

from picollm.model.gpt import GPT
from picollm.run import config, event_file, pipeline
from picollm.run import events as ev
from picollm.run.folder import Run
from picollm.run.scaling import shape_for
from picollm.text.tokenizer import Tokenizer, train_tokenizer
from picollm.train import checkpoint


def make(name: str, text: str) -> Run:
    """A run in PICOLLM_RUNS whose tokenizer, trained on the text, and pretraining are done."""
    run = Run.create(name, config.load(environ={}))
    tok = train_tokenizer([text], 280)
    tok.save(run.dir / "tokenizer")
    finished(run, "tokenizer", {"tokenizer": "tokenizer"}, {"tokenizer": tok.hash})
    add_model(run, "pretrain")
    return run


def add_model(run: Run, stage: str, seed: int = 1) -> None:
    """Let a stage have made a model."""
    tok = Tokenizer.load(run.dir / "tokenizer")
    model = GPT(shape_for(2, tok.vocab_size, 32, dim=32, head_dim=16))
    model.init_weights(seed)
    meta = {"fingerprint": "f", "tokenizer": tok.hash}
    info = checkpoint.save(run.dir / pipeline.CHECKPOINT_FOLDERS[stage], seed, model, None, meta)
    finished(run, stage, {"checkpoint": str(info.path.relative_to(run.dir))}, {"checkpoint": info.hash})


def finished(run: Run, stage: str, paths: dict[str, str], artifacts: dict[str, str]) -> None:
    """One more attempt of the stage, which made these."""
    run.stage_dir(stage).mkdir(parents=True, exist_ok=True)
    attempt = max(run.attempts(stage), default=0) + 1
    event_file.append(run.events_file(stage, attempt), ev.Finished(seconds=1.0, paths=paths, artifacts=artifacts))
