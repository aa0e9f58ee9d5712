"""The library as a notebook uses it, and the code of docs/library.md, run as written against a tiny run."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from picollm import Model, load
from picollm.model.gpt import GPT
from picollm.run import config, event_file
from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.scaling import shape_for
from picollm.text.tokenizer import train_tokenizer
from picollm.train import checkpoint

ROOT = Path(__file__).resolve().parents[1]
TEXT = "the boats came home over the grey water"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run called demo: a base model, an SFT model, and a checkpoint of RL that has not finished."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PICOLLM_RUNS", str(tmp_path_factory.mktemp("runs")))
        run = Run.create("demo", config.load(environ={}))
    tok = train_tokenizer([TEXT], 280)
    tok.save(run.dir / "tokenizer")
    done = {"tokenizer": ({"tokenizer": "tokenizer"}, {"tokenizer": tok.hash})}
    for number, (stage, folder) in enumerate(
        {"pretrain": "base_checkpoints", "sft": "chatsft_checkpoints", "rl": "rl_checkpoints"}.items()
    ):
        model = GPT(shape_for(2, tok.vocab_size, 256, dim=32, head_dim=16))
        model.init_weights(number)
        with torch.no_grad():
            model.lm_head.weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(number))
        meta = {"fingerprint": "f", "tokenizer": tok.hash, "stage": stage, "step": 3}
        info = checkpoint.save(run.dir / folder, 3, model, None, meta)
        if stage != "rl":
            done[stage] = ({"checkpoint": ev_path(run, info.path)}, {"checkpoint": info.hash})
    for stage, (paths, artifacts) in done.items():
        run.stage_dir(stage).mkdir(parents=True)
        event_file.append(run.events_file(stage, 1), ev.Finished(seconds=1.0, paths=paths, artifacts=artifacts))
    return run


def ev_path(run: Run, path: Path) -> str:
    return str(path.relative_to(run.dir))


@pytest.fixture
def here(demo: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("PICOLLM_RUNS", str(demo.dir.parent))
    return demo


def test_the_code_of_the_documentation_runs(here: Run) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 5
    program = (
        "\n".join(blocks)
        .replace('load("demo"', 'load("demo", device="cpu"')
        .replace('load("demo", device="cpu", "base")', 'load("demo", "base", device="cpu")')
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=env, cwd=here.dir, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Model(pretrain, step 3" in done.stdout and "torch.Size([1, " in done.stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys, picollm; print(' '.join(sys.modules)); picollm.load; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = done.stdout.splitlines()
    assert not {"torch", "numpy", "picollm.run"} & set(before.split()) and after == "True"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        import picollm

        _ = picollm.nothing


def test_which_model_is_loaded(here: Run) -> None:
    assert load("demo", device="cpu").meta["stage"] == "sft"  # the last that finished
    assert load("demo", "base", device="cpu").meta["stage"] == "pretrain"
    assert load("demo", "rl", device="cpu").meta["stage"] == "rl"  # named: as far as it has come
    assert load(here.dir, device="cpu").meta["stage"] == "sft"
    one = load(here.dir / "base_checkpoints" / "step-000003", device="cpu")
    assert one.meta["stage"] == "pretrain" and not one.chat


@pytest.mark.parametrize(
    ("source", "model", "said"),
    [
        ("nobody", "", "no run 'nobody'"),
        ("demo", "best", "expected one of base, mid, sft, rl"),
        ("demo", "mid", "demo has no model 'mid' yet; make it first: picollm run --run demo"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(here: Run, source: str, model: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as error:
        load(source, model, device="cpu")
    assert "\n" not in str(error.value)


def test_a_checkpoint_is_one_model(here: Run) -> None:
    with pytest.raises(UserError, match="one checkpoint"):
        load(here.dir / "base_checkpoints" / "step-000003", "base")


def test_another_tokenizer_is_refused(here: Run, tmp_path: Path) -> None:
    train_tokenizer(["quite another text"], 280).save(tmp_path)
    with pytest.raises(UserError, match="tokenizer"):
        load("demo", tokenizer=tmp_path, device="cpu")


def test_stream_gives_what_generate_gives(here: Run) -> None:
    model = load("demo", device="cpu")
    how = {"temperature": 1.0, "seed": 3, "max_tokens": 24}
    text = model.generate("the water", **how)
    assert "".join(model.stream("the water", **how)) == text
    assert model.generate([{"role": "user", "content": "the water"}], **how) == text
    assert load("demo", device="cpu").decode(model.encode(TEXT)) == TEXT


def test_a_base_model_continues_and_refuses_conversations(here: Run) -> None:
    base = load("demo", "base", device="cpu")
    assert isinstance(base.generate("the boats", max_tokens=5), str)
    with pytest.raises(UserError, match="only continues text"):
        base.generate([{"role": "user", "content": "hi"}])


def test_unknown_sampling_settings_are_named(here: Run) -> None:
    with pytest.raises(UserError, match=r"unknown sampling setting heat: expected some of max_tokens"):
        load("demo", device="cpu").generate("hi", heat=1)


def nats(model: Model, ids: list[int]) -> float:
    """-log p of ids[1:], read in one window, straight from the network's logits."""
    network = model.engine.source
    with torch.inference_mode():
        logits = network.logits(network.hidden(torch.tensor([ids[:-1]]))).float().log_softmax(-1)[0]
    return -sum(float(logits[i, token]) for i, token in enumerate(ids[1:]))


def test_bits_per_byte_is_the_mean_over_the_bytes(here: Run) -> None:
    model = load("demo", device="cpu")
    ids = [model.tokenizer.bos_id, *model.encode(TEXT)]
    assert model.bits_per_byte(TEXT) == pytest.approx(nats(model, ids) / math.log(2) / len(TEXT), rel=1e-5)
    with pytest.raises(UserError, match="no text"):
        model.bits_per_byte("")


def test_a_text_longer_than_the_context_counts_every_token_once(here: Run) -> None:
    model = load("demo", device="cpu")
    long = (TEXT + ". ") * 40
    ids = [model.tokenizer.bos_id, *model.encode(long)]
    T = model.context
    assert len(ids) > 2 * T
    windows = [ids[i : i + T + 1] for i in range(0, len(ids) - 1, T)]
    found = model.loss(long)
    assert (found.tokens, found.bytes) == (len(ids) - 1, len(long.encode()))
    assert found.nats == pytest.approx(sum(nats(model, window) for window in windows), rel=1e-5)
