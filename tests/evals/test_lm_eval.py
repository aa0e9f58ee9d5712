"""The harness's scores are ours. Skipped where lm-eval is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from picollm.evals.core import evaluate_task
from picollm.evals.core_bundle import CoreTask
from picollm.infer.engine import Engine
from picollm.infer.sampling import Sampling
from picollm.run.errors import UserError
from picollm.train.device import Ranks
from tests.infer.fakes import ByteTokenizer, tiny_model

TOK = ByteTokenizer()


def test_without_lm_eval_there_is_one_line() -> None:
    block = "import sys; sys.modules['lm_eval'] = None\nimport picollm.evals.lm_eval"
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stderr.splitlines()[-1].endswith("lm_eval is not installed; pip install 'picollm-tui[eval]'")


def test_the_command_without_lm_eval_ends_in_one_line() -> None:
    start = "runpy.run_module('picollm.evals.lm_eval', None, '__main__')"
    block = f"import runpy, sys; sys.modules['lm_eval'] = None; {start}"
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    said = "error: lm-eval cannot be used: lm_eval is not installed; pip install 'picollm-tui[eval]'"
    assert (done.returncode, done.stderr.splitlines()) == (2, [said])


@pytest.fixture(scope="module")
def harness():
    pytest.importorskip("lm_eval")
    from picollm.evals import lm_eval

    return lm_eval


@pytest.fixture
def lm(harness):
    return harness.PicoLM(Engine(tiny_model(), TOK), TOK, tokens_at_once=500)


def ask(*args: object) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def by_hand(lm, ids: list[int], start: int) -> tuple[float, bool]:
    with torch.no_grad():
        logs = torch.log_softmax(lm.engine.source(torch.tensor([ids]))[0].double(), -1)
    places = range(start - 1, len(ids) - 1)
    return sum(logs[p, ids[p + 1]].item() for p in places), all(int(logs[p].argmax()) == ids[p + 1] for p in places)


def same(got: tuple[float, bool], wanted: tuple[float, bool]) -> None:
    assert got[0] == pytest.approx(wanted[0], rel=1e-4) and got[1] == wanted[1]


def test_an_unknown_task_is_one_line(lm, harness, monkeypatch, capsys) -> None:
    monkeypatch.setattr(harness, "load", lambda *_, **__: SimpleNamespace(engine=lm.engine, tokenizer=TOK))
    assert harness.main(["demo", "--tasks", "arc_eazy"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: lm-eval has no task 'arc_eazy': expected arc_easy")


def test_loglikelihood_is_that_of_the_continuation(lm) -> None:
    context = "A question that is long enough to be shared."
    asked = [ask(context, " yes"), ask("", "all"), ask(context, " no way"), ask("short", "er"), ask("end ", "ing")]
    found = lm.loglikelihood(asked)
    bos = [TOK.bos_id]
    for got, (before, after) in zip(
        found, [(context, " yes"), ("", "all"), (context, " no way"), ("short", "er"), ("end", " ing")], strict=True
    ):
        same(got, by_hand(lm, [*bos, *(before + after).encode()], 1 + len(before)))
    [long] = lm.loglikelihood([ask("x" * 200, " yes")])
    same(long, by_hand(lm, [*b"x" * 124, *b" yes"], 124))
    assert lm.loglikelihood([ask("something", "")]) == [(0.0, True)]


def test_a_whole_text_is_read_in_windows(lm) -> None:
    text = "".join(chr(97 + i * i % 26) for i in range(300))
    short, long = lm.loglikelihood_rolling([ask("some text"), ask(text)])
    assert short == pytest.approx(by_hand(lm, [TOK.bos_id, *b"some text"], 1)[0], rel=1e-4)
    ids = [TOK.bos_id, *text.encode()]  # 127 predictions a window, and for the last 46 as much context as fits
    parts = [by_hand(lm, ids[:128], 1), by_hand(lm, ids[127:255], 1), by_hand(lm, ids[-128:], 128 - 46)]
    assert long == pytest.approx(sum(total for total, _ in parts), rel=1e-4)


def test_generation_stops_where_it_should(lm) -> None:
    [whole] = lm.generate_until([ask("once", {"max_gen_toks": 20})])
    assert whole == lm.engine.generate([[TOK.bos_id, *b"once"]], Sampling(max_tokens=20), tools=False)[0].text
    stop = whole[3:5]
    cut, other = lm.generate_until([ask("once", {"until": [stop], "max_gen_toks": 20}), ask("a", {"max_gen_toks": 2})])
    assert cut == whole[: whole.index(stop)] and len(other) <= 2
    with pytest.raises(UserError, match="special tokens have no spelling"):
        lm.apply_chat_template([])


def test_the_harness_and_core_agree_on_the_same_items(lm, harness, tmp_path, monkeypatch) -> None:
    """Options of equal length, so that the harness's sum and CORE's mean order them alike."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    rows = [
        {"query": f"Question {i}: what is it?", "choices": [f"{(i + k) % 7}a" for k in range(3)], "gold": i % 3}
        for i in range(24)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "mini",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path / "cache")},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    }
    found = harness.evaluate(SimpleNamespace(engine=lm.engine, tokenizer=TOK), [task], bootstrap_iters=0)
    core_task = CoreTask(label="mini", kind="multiple_choice", file="", shots=0, delimiter=" ", baseline=0.0)
    ours = evaluate_task(core_task, rows, lm.engine, TOK, Ranks(torch.device("cpu")))
    assert 0 < ours["correct"] < len(rows)
    assert found["results"]["mini"]["acc,none"] == pytest.approx(ours["accuracy"])
    for sample in found["samples"]["mini"]:
        row = sample["doc"]
        for choice, [(logprob, _)] in zip(row["choices"], sample["resps"], strict=True):
            before = [TOK.bos_id, *row["query"].encode()]
            wanted, _ = by_hand(lm, [*before, *f" {choice}".encode()], len(before))
            assert float(logprob) == pytest.approx(wanted, rel=1e-4)
