"""The profiles for real machines, end to end at miniature size, with a Hub on the loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from picollm.data.hub import SOURCES
from picollm.data.pydocs import documents
from picollm.run import pipeline, plan, scaling
from tests import published
from tests.evals.bundle import write_bundle, zip_bundle
from tests.hub import LoopbackHub, parquet
from tests.stages.conftest import Workplace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PER_FILE = 150
MIXTURE = (
    "{ smoltalk = 60, mmlu = 30, gsm8k = 60, simple_spelling = 40, spelling_bee = 20, "
    '"arithmetic:digits=3" = 20, identity = 60, course = 20 }'
)
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
        published.publish(hub)
        packed = zip_bundle(write_bundle(tmp_path / "core"), tmp_path / "eval_bundle.zip")
        hub.add("some/core", {"eval_bundle.zip": packed.read_bytes()})
        found.env["PICOLLM_BASE_EVAL__CORE_URL"] = f"{hub.url}/datasets/some/core/resolve/main/eval_bundle.zip"
        yield found


@pytest.mark.parametrize("profile", MORE)
def test_a_profile_from_text_to_report(place: Workplace, profile: str) -> None:
    sets = [w for key, value in (MINIATURE | MORE[profile]).items() for w in ("--set", f"{key}={value}")]
    done = place.picollm("run", "--profile", profile, "--run", "mini", *sets, timeout=1700)
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
    base_eval = run.finished("base_eval").summary  # type: ignore[union-attr]
    assert ("core" in base_eval) == (profile != "workshop")
    if profile != "workshop":
        assert (base_eval["core_tasks"], base_eval["core_n"]) == (3, 13) and "core_baselines" in base_eval
    assert "not for commercial use" in manifest["stages"]["dataset"]["summary"]["licence"]
    tasks = manifest["stages"]["dataset"]["summary"]["tasks"]
    assert tasks["smoltalk"]["licence"] == "Apache 2.0" and len(tasks["gsm8k"]["sha256"]) == 2
    assert {"smoltalk", "mmlu", "gsm8k", "arc_easy"} <= tasks.keys()
    assert len(list((place.home / "hub" / "pinned").glob("*.json"))) == (4 if profile == "workshop" else 5)
    asked = json.loads((run.dir / "eval" / "chat_eval.json").read_text())["models"]["sft"]
    assert {"mmlu", "gsm8k", "spelling_bee", "arc_easy"} <= asked.keys() and "smoltalk" not in asked
    assert all(cell["n"] == 8 for name, cell in asked.items() if name in ("mmlu", "gsm8k", "arc_easy"))
    assert config.rl.task == ("arithmetic:digits=3,operations=2" if profile == "workshop" else "gsm8k")
    text = place.picollm("plan", "--run", "mini")
    assert text.returncode == 0 and "matrices and lm_head" in text.stdout and "dry run" in text.stdout
