"""Which models a run has; the environment's endpoint; what a foreign server is asked instead."""

from __future__ import annotations

import json

import pytest

from picollm.run import endpoint, event_file, models, stream
from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.folder import Run


def checkpoint(run: Run, folder: str, step: int, whole: bool = True) -> str:
    path = run.dir / folder / f"step-{step:06d}"
    path.mkdir(parents=True)
    (path / "meta.json").write_text(json.dumps({"shape": {"seq_len": 256}, "score": 2.0 - step / 1000}))
    if whole:
        (path / "manifest.json").write_text("{}")
    return f"{folder}/{path.name}"


def test_finished_ones_and_checkpoints_in_the_order_they_were_made(run: Run) -> None:
    for step in (200, 100, 300):
        last = checkpoint(run, "base_checkpoints", step)
    checkpoint(run, "base_checkpoints", 400, whole=False)
    (run.dir / "base_checkpoints" / ".saving-500").mkdir()
    checkpoint(run, "mid_checkpoints", 50)
    run.stage_dir("pretrain").mkdir(parents=True, exist_ok=True)
    event_file.append(run.events_file("pretrain", 1), ev.Finished(seconds=1, paths={"checkpoint": last}, artifacts={}))
    found = models.models(run)
    assert [each.name for each in found] == ["base@100", "base@200", "base", "mid@50"]
    assert [each.step for each in found] == [100, 200, 300, 50]
    assert {each.context for each in found} == {256} and found[0].score == 1.9
    assert [each.finished for each in found] == [False, False, True, False]
    (run.dir / "mid_checkpoints" / "step-000050" / "meta.json").write_text("{torn")
    assert models.models(run)[-1].context is None


@pytest.mark.parametrize(
    ("name", "family"), [("base", "base"), ("sft@310", "sft"), ("demo/base@7", "base"), ("a@b/rl", "rl")]
)
def test_families(name: str, family: str) -> None:
    assert models.family(name) == family and models.is_base(name) == (family == "base")


def test_the_endpoint_of_the_environment() -> None:
    assert endpoint.from_environment({}) is None
    found = endpoint.from_environment({"OPENAI_BASE_URL": " http://models.example:81/v1/ ", "OPENAI_API_KEY": "k"})
    assert found is not None and found.url == "http://models.example:81/v1" and found.key == "k"
    assert found.host == "models.example:81" and found.in_the_clear
    assert not endpoint.Endpoint("http://127.0.0.1:1/v1").in_the_clear
    for wrong in ("models.example/v1", "ftp://models.example", "http://", "http://x:99999999",
                  "https://me:secret@models.example/v1", "https://models.example/v1?key=secret"):  # fmt: skip
        with pytest.raises(UserError, match="OPENAI_BASE_URL") as refused:
            endpoint.from_environment({"OPENAI_BASE_URL": wrong})
        assert "secret" not in str(refused.value)


def test_a_refusal_is_met_only_where_the_answer_stays_the_same() -> None:
    body = stream.body_of("m", chat=True, own=False, temperature=0.5, top_k=9, seed=1, max_tokens=7, logprobs=3,
                          show_tools=True)  # fmt: skip
    assert "top_k" not in body and "show_tools" not in body and body["top_logprobs"] == 3
    without = stream.milder(body, "logprobs are not supported with this model")
    assert without is not None and not {"logprobs", "top_logprobs"} & set(without)
    other = stream.milder(without, "use 'max_completion_tokens' instead")
    assert other is not None and other["max_completion_tokens"] == 7 and "max_tokens" not in other
    assert stream.milder(other, "use 'max_completion_tokens' instead") is None
    assert stream.milder(body, "temperature must be 1") is None
