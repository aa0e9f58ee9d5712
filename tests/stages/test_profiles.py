"""The profiles for real machines, end to end at miniature size, with a Hub on the loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from picollm.data.hub import SOURCES
from picollm.data.pydocs import documents
from picollm.run import pipeline, plan, scaling
from tests.hub import LoopbackHub, parquet
from tests.stages.conftest import Workplace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PER_FILE = 150
MIXTURE = '{ docs_qa = 60, docs_choice = 20, spelling = 60, counting = 20, "arithmetic:digits=3" = 60, identity = 60 }'
MINIATURE = {
    "model.depth": 2,
    "model.dim": 64,
    "model.head_dim": 32,
    "model.seq_len": 128,
    "tokenizer.vocab_size": 512,
    "data.shards": 2,
    "data.first_shards": 1,
    "machine.compile": "off",
    "machine.precision": "fp32",
    "base_eval.val_tokens": 4096,
    "base_eval.sample_tokens": 8,
    "midtrain.mixture": MIXTURE,
    "sft.mixture": MIXTURE,
    "rl.steps": 2,
    "rl.questions": 2,
    "rl.samples": 4,
    "rl.max_tokens": 16,
    "rl.eval_items": 8,
    "chat_eval.items": 8,
    "chat_eval.max_tokens": 16,
}
SHORT = {"pretrain.ratio": 2.0}
MORE = {
    "workshop": {"run.minutes": 0.5},
    "single-gpu": SHORT,
    "speedrun": SHORT | {"machine.device_rows": 40},
}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    """A workplace that is sent to a Hub with three files of ClimbMix: two to train on, and the last one by name."""
    found, source = Workplace(tmp_path), SOURCES["climbmix"]
    texts = [document.text for document in documents()]
    with LoopbackHub() as hub:
        found.env |= hub.environment(tmp_path / "hf")
        for place, number in enumerate((0, 1, source.shards - 1)):
            data = parquet(texts[place * PER_FILE : (place + 1) * PER_FILE])
            hub.add(source.repo, {source.name(number): data}, card={"license": "cc-by-nc-4.0"})
        yield found


@pytest.mark.parametrize("profile", MORE)
def test_a_profile_from_text_to_report(place: Workplace, profile: str) -> None:
    sets = [w for key, value in (MINIATURE | MORE[profile]).items() for w in ("--set", f"{key}={value}")]
    done = place.picollm("run", "--profile", profile, "--run", "mini", *sets, timeout=850)
    assert done.returncode == 0, done.stdout + done.stderr
    run = place.run("mini")
    assert [status.state for status in run.statuses()] == ["done"] * len(pipeline.NAMES)
    config, made = run.config(), run.plan()
    assert made is not None
    shape = plan.shape(config, run.finished("tokenizer").summary["vocab_size"])  # type: ignore[union-attr]
    pretrain = run.finished("pretrain").summary  # type: ignore[union-attr]
    assert pretrain["step"] == made.values["pretrain.steps"] == config.pretrain.steps
    if profile != "workshop":  # no budget: all from depth
        wished = plan.shape(config)
        rows = scaling.batch_tokens(wished) // 128
        assert config.pretrain.rows == made.values["pretrain.rows"] == rows
        assert config.pretrain.steps == scaling.iterations(wished, config.pretrain.ratio, rows * 128)
        assert config.pretrain.scale_lr and pretrain["tokens"] == pretrain["step"] * rows * 128
    if profile == "speedrun":
        assert config.machine.device_rows == 40 < config.pretrain.rows
    assert shape.depth == 2
    manifest = json.loads((run.dir / "run_manifest.json").read_text())
    assert 0 < manifest["results"]["base"]["bpb"] < 8
    assert "not for commercial use" in manifest["stages"]["dataset"]["summary"]["licence"]
    text = place.picollm("plan", "--run", "mini")
    assert text.returncode == 0 and "matrices and lm_head" in text.stdout and "dry run" in text.stdout
