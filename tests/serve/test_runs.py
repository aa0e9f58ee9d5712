"""Checkpoints of runs as models: names, newcomers, and what cannot be served."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from picollm.infer import products
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.serve.hub import Unavailable
from picollm.serve.runs import RunModels
from picollm.text.tokenizer import train_tokenizer
from tests.serve.tiny_run import add_model, make


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PICOLLM_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_names_of_one_run_and_of_several() -> None:
    one, two = make("one", "the boats came home"), make("two", "rain on the town")
    add_model(two, "sft")
    assert RunModels([one], say=lambda _: None).hub.names == ["base"]
    models = RunModels([one, two], say=lambda _: None)
    assert models.hub.names == ["one/base", "two/base", "two/sft"]
    assert models.hub.info("two/sft")["stage"] == "sft" and models.hub.info("two/sft")["run"] == "two"
    assert models.hub.engine("two/sft").tok.vocab_size == models.hub.engine("two/base").tok.vocab_size


def test_two_runs_of_one_name(runs: Path) -> None:
    one = make("one", "the boats came home")
    shutil.copytree(one.dir, runs / "copy" / "one")
    with pytest.raises(UserError, match="two runs are called 'one'"):
        RunModels([one, Run(runs / "copy" / "one")])


def test_stages_that_finish_while_we_serve() -> None:
    run = make("one", "the boats came home")
    models = RunModels([run], say=lambda _: None)
    old = models.hub.engine("base")
    add_model(run, "sft")
    add_model(run, "pretrain", seed=2)
    models.look()
    assert models.hub.names == ["base", "sft"] and models.hub.engine("base") is not old


def test_what_cannot_be_served_is_said_once_with_its_cure() -> None:
    run, said = make("one", "the boats came home"), []
    train_tokenizer(["something else entirely"], 280).save(run.dir / "tokenizer")
    models = RunModels([run], say=said.append)
    models.look()
    assert len(said) == 1 and "another tokenizer" in said[0] and "picollm run --run one --from pretrain" in said[0]
    with pytest.raises(UserError, match="picollm run --run one --from pretrain"):
        models.require()


def test_no_model_yet() -> None:
    run = make("one", "the boats came home")
    shutil.rmtree(run.stage_dir("pretrain"))
    with pytest.raises(UserError, match=r"finish pretrain first \(picollm run --run one\)"):
        RunModels([run], say=lambda _: None).require()


@pytest.mark.parametrize("harm", ["gone", "torn"])
def test_a_checkpoint_that_is_lost_or_damaged_later(harm: str) -> None:
    run = make("one", "the boats came home")
    models = RunModels([run], say=lambda _: None)
    [folder] = (run.dir / "base_checkpoints").iterdir()
    if harm == "gone":
        shutil.rmtree(folder)
    else:
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(Unavailable, match="picollm run --run one --from pretrain") as refused:
        models.hub.engine("base")
    assert "\n" not in str(refused.value)


def test_a_precision_that_does_not_run_here_is_no_reason_to_train_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_int8_products_work", lambda: False)
    models = RunModels([make("one", "the boats came home")], precision="int8", say=lambda _: None)
    with pytest.raises(Unavailable, match="use fp32 or bf16") as refused:
        models.hub.engine("base")
    assert "--precision" in str(refused.value) and "picollm run" not in str(refused.value)
