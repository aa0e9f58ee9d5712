"""The report and the manifest of runs made of fixture events: every section from what the stages said."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from picollm.run import config as settings
from picollm.run import events as ev
from picollm.run import failures, gpus, manifest, pipeline, report
from picollm.run.folder import Run, write_atomic
from picollm.run.manifest import Record
from picollm.run.report_blocks import Heading, Text
from picollm.run.report_html import page
from tests.fixtures.make_runs import Script, make, start

CELL = {"n": 120, "correct": 30, "accuracy": 0.25, "low": 0.18, "high": 0.33, "baseline": 0.0, "kind": "generative"}
CORE = {"chatcore": 0.3, "low": 0.25, "high": 0.36, "n": 240, "tasks": 2}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run whose evaluations, data and mixtures said what the real ones say."""
    run = make(tmp_path, "finished", "r")
    mmlu = {"licence": "MIT", "files": {str(n): "x" for n in range(40)}}
    again(run, "dataset", {"source": "climbmix", "licence": "CC BY-NC", "documents": 12345, "tasks": {"mmlu": mmlu}})
    core = {"core": 0.21, "core_low": 0.2, "core_high": 0.22, "core_n": 900, "core_tasks": 1, "core_items": 900,
            "core_complete": False, "core_baselines": "eval_meta_data.csv sha256 12ab"}  # fmt: skip
    piqa = {"accuracy": 0.6, "low": 0.57, "high": 0.63, "baseline": 0.5, "centered": 0.2}
    again(run, "base_eval", {"bpb": 1.5, **core},
          [ev.Eval(name="core/piqa", step=0, values=piqa, n=900),
           ev.Sample(prompt="The list", text="is a list of the lists", step=0, model="base")])  # fmt: skip
    source = {"source": "https://huggingface.co/datasets/openai/gsm8k", "licence": "MIT", "sha256": {"a": "1"}}
    again(run, "sft", {"conversations": {"gsm8k": 70}, "conversation_tokens": {"gsm8k": 9000}, "cut": 3, "dropped": 1,
                       "sources": {"gsm8k": source}}, [
        ev.Metrics(step=n, values={"loss": 5.0 - n}) for n in range(1, 5)
    ])  # fmt: skip
    again(run, "tokenizer_eval", {
        "texts": {"german": {"bytes": 100, "tokens": 50, "bytes_per_token": 2.0, "exact": True, "GPT-2": 2.5}},
        "others": {"GPT-2": "50,257 ids", "GPT-4": "not cached in /tmp"},
    })  # fmt: skip
    again(run, "chat_eval", chat_summary(), [
        ev.Sample(prompt="Who are you?", text=f"I am {model}. " * 3, step=0, model=model,
                  details={"finish_reason": "stop" if model != "base" else "length"})
        for model in pipeline.MODEL_STAGES
    ])  # fmt: skip
    shutil.rmtree(run.dir / "eval" / "failures")
    failures.write(
        run, "rl", "spelling", [{"index": 4, "topic": "", "prompt": "Spell <b>", "expected": "b", "got": ""}]
    )
    (run.dir / "notes.md").write_text("Written *after* the run.")
    return run


def chat_summary() -> dict:
    cells = {model: {"spelling": CELL, "letters_x": CELL | {"accuracy": 0.5}} for model in pipeline.MODEL_STAGES}
    return {"models": cells, "chatcore": dict.fromkeys(cells, CORE), "skipped": {"humaneval": "no sandbox here"}}


def again(run: Run, stage: str, summary: dict, said: list[ev.Event] | None = None, end: ev.Event | None = None) -> None:
    """Another attempt at a stage that ends as done, or as `end`."""
    script = attempt(run, stage)
    for event in said or []:
        script.say(event)
    before = run.finished(stage)
    done = ev.Finished(seconds=9.0, paths=before.paths, artifacts=before.artifacts, summary=summary)
    script.say(end or done, 9.0)
    script.write()


def attempt(run: Run, stage: str) -> Script:
    return start(run, stage, 1_800_000_000.0, run.config(), attempt=max(run.attempts(stage)) + 1)


def sections(text: str) -> dict[str, str]:
    parts = [part.partition("\n") for part in text.split("\n## ")]
    return {title: body for title, _, body in parts}


def test_every_section_is_there_with_what_the_stages_said(run: Run) -> None:
    found = sections(report.text_of(run))
    results = found["What each step added"]
    assert "| spelling | 25.0 % (18–33, n=120) |" in results and "| task | base | mid | sft | rl |" in results
    assert (
        "| ChatCORE | 0.3000 (0.250–0.360, n=240) |" in results and "| CORE | 0.2100 (0.200–0.220, n=900) |" in results
    )
    assert "| bits per byte | 1.5000 |" in results and "humaneval was left out: no sandbox here." in results
    assert "| spelling | – | – | – | 1 |" in found["Wrong answers"] and "Spell \\<b>" in found["Wrong answers"]
    side = found["Side by side"]
    assert "| rl | 1 | 9 | 60 % | 1 of 1 |" in side and "| base | 1 | 9 | 60 % | 0 of 1 |" in side
    assert "### Who are you?" in side and "> I am sft. I am sft. I am sft." in side
    assert "| pretrain | done | 1 | 1 min 36 s |" in found["Time and cost, planned and spent"]
    assert (
        "| memory | ok | 15.6 GiB |" in found["Environment"] and "| version of python | 3.11 |" in found["Environment"]
    )
    assert "| preflight | precision | bf16 | bf16 5,200, fp32 3,100 |" in found["Choices made by measuring"]
    assert "| licence | CC BY-NC |" in found["Data"] and "| tasks mmlu licence | MIT |" in found["Data"]
    assert "| tasks mmlu files | 40 entries, in run_manifest.json |" in found["Data"]
    assert "| german | 100 | 50 | 2.00 | 2.50 | – | yes |" in found["Tokenizer"]
    assert "GPT-4: not cached in /tmp." in found["Tokenizer"]
    assert "| piqa | 60.0 % (57–63, n=900) | 50.0 % | 0.200 |" in results and "not the whole metric" in results
    assert "eval_meta_data.csv sha256 12ab" in results.replace("\\", "")
    assert "| gsm8k licence | MIT |" in found["Data"] and "| sft | gsm8k | 70 | 9,000 | 100.0 % |" in found["Mixtures"]
    assert "sft: of the conversations longer than a row, 3 cut at a turn and 1 dropped." in found["Mixtures"]
    training = found["Training"]
    assert "| pretrain | 400 |" in training and "| pretrain | val/bpb | 50 |" in training
    assert "**pretrain: loss**" in training and "┤⠀" in training and "**rl: reward**" in training
    assert "| sft.steps |" in found["Settings"]
    assert found["To make it again"].startswith("\n```sh\npicollm run --profile pocket")
    assert report.text_of(run).splitlines()[2] == "Written *after* the run."


MANIFEST_KEYS = {
    "format", "run", "profile", "origin", "written", "command", "machine", "versions", "config", "plan", "prompts",
    "notes", "data", "seconds", "predicted_s", "cost", "stages", "results", "core", "chatcore", "skipped", "failures",
}  # fmt: skip
STAGE_KEYS = {
    "state", "attempts", "seconds", "predicted_s", "dollars", "predicted_dollars", "ranks", "fingerprint", "inputs",
    "versions", "machine", "artifacts", "paths", "summary", "readings", "warnings",
}  # fmt: skip


def test_the_manifest_key_by_key(run: Run) -> None:
    facts = json.loads(manifest.as_json(manifest.manifest(Record(run))))
    assert set(facts) == MANIFEST_KEYS
    assert set(facts["stages"]) == set(pipeline.NAMES) - {"report"}
    assert all(set(stage) == STAGE_KEYS for stage in facts["stages"].values())
    assert set(facts["machine"]) == {
        "system", "processor", "cores", "memory_bytes", "memory_used", "cpu", "gpus", "python", "recorded",
    }  # fmt: skip
    assert facts["format"] == 1 and facts["run"] == "r" and facts["profile"] == "pocket"
    assert facts["notes"] == "Written *after* the run." and facts["prompts"] == run.prompts()
    assert facts["config"] == msgspec.to_builtins(run.config()) and facts["plan"]["values"]
    assert facts["data"]["licence"] == "CC BY-NC" and facts["versions"]["python"] == "3.11"
    assert facts["results"]["sft"]["spelling"] == CELL and facts["results"]["base"]["bpb"] == 1.5
    assert facts["core"]["core"] == 0.21 and facts["core"]["cells"]["piqa"]["centered"] == 0.2
    assert facts["chatcore"]["rl"] == CORE and facts["skipped"] == {"humaneval": "no sandbox here"}
    assert (run.dir / facts["failures"]["rl/spelling"]).exists()
    sft, pretrain = facts["stages"]["sft"], facts["stages"]["pretrain"]
    assert sft["artifacts"] and sft["fingerprint"] and sft["inputs"]["run.seed"] == 1337 and sft["ranks"] == 1
    assert pretrain["readings"]["val"]["step"] == 400 and pretrain["readings"]["val"]["n"] == 20480
    first = sum(stage["seconds"] or 0 for stage in facts["stages"].values()) - 5 * 9
    assert facts["seconds"] == pytest.approx(first + 9)  # five stages were made again, all at the same time
    assert facts["stages"]["dataset"]["attempts"] == 2 and facts["stages"]["dataset"]["seconds"] > 9


def test_versions_are_those_of_the_newest_attempt(run: Run) -> None:
    record = Record(run)
    record.histories["tokenizer"].started[-1].versions = {"python": "3.13", "torch": "2.13"}
    record.histories["tokenizer"].started[-1].time = 1_900_000_000.0
    assert manifest.versions(record)["python"] == "3.13"


FARM = {"system": "Linux of the farm", "processor": "Many Cores", "cores": 96, "memory_bytes": 1 << 40,
        "python": "3.12", "gpus": [{"name": "NVIDIA H100 80GB HBM3", "memory_total": 80 << 30}] * 2}  # fmt: skip


def trained_on(run: Run, stage: str, machine: dict) -> None:
    """Another attempt at a stage, made there."""
    done = run.finished(stage)
    script = start(run, stage, 1_800_000_000.0, run.config(), attempt=max(run.attempts(stage)) + 1, machine=machine)
    script.say(ev.Metrics(step=1, values={"loss": 1.0}))
    script.say(done, 3.0)
    script.write()


def test_the_machine_is_the_one_that_trained(run: Run) -> None:
    """Not the one on which the report is written; where training did not say, that is said."""
    found = sections(report.text_of(run))["Environment"]
    assert "training did not say" in found and not Record(run).machine["recorded"]
    trained_on(run, "pretrain", FARM)
    record = Record(run)
    assert record.machine["recorded"] and record.machine["cores"] == 96 and len(record.machine["gpus"]) == 2
    assert record.machine["gpus"][0]["memory_used"] is None  # the readings are of a machine without
    assert manifest.hourly(record)["source"].startswith("a typical price of h100")
    text = report.text_of(run)
    assert (
        "NVIDIA H100 80GB HBM3, – of 80.0 GiB at most" in text
        and "training did not say" not in text
        and " ran on" not in text
    )
    trained_on(run, "sft", FARM | {"processor": "A Laptop", "cores": 4, "gpus": []})
    found = sections(report.text_of(run))["Environment"]
    assert "| sft ran on | A Laptop, 4 cores |" in found and "| system | Linux of the farm |" in found


def test_words_about_steps_stand_at_the_curve_of_the_loss(run: Run) -> None:
    again(run, "midtrain", {}, [ev.Resumed(step=0), *(ev.Metrics(step=n, values={"loss": 5.0}) for n in (1, 2, 3)),
                                ev.Note(step=2, text="loss <spiked>: the new format")])  # fmt: skip
    assert (
        "│ 2: loss <spiked>: the new format" in report.text_of(run).partition("**midtrain: loss**")[2].split("```")[1]
    )
    shown = report.page_of(run)
    assert shown.count('<line class="mark"') == 1 and "2: loss &lt;spiked&gt;: the new format</title>" in shown
    assert "┆ 2: loss &lt;spiked&gt;: the new format</figcaption>" in shown


def test_numbers_that_json_does_not_have_are_null(run: Run) -> None:
    again(run, "base_eval", {"bpb": float("nan")}, [ev.Eval(name="val", step=0, values={"loss": None}, n=1)])
    facts = json.loads(manifest.as_json(manifest.manifest(Record(run))))
    assert facts["stages"]["base_eval"]["readings"]["val"]["loss"] is None


def test_the_command_makes_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PICOLLM_RUNS", str(tmp_path))
    sets = ["sft.lr=0.5", "report.notes=it's \"mine\" $HOME", "sft.mixture={'arithmetic:digits=3,operations=2' = 40}",
            "log.tensorboard=true", "data.source=my text/"]  # fmt: skip
    run = Run.create("r", settings.load("smoke", sets=sets, environ={}))
    words = shlex.split(manifest.command(run))
    assert words[:4] == ["picollm", "run", "--profile", "smoke"]
    assert settings.load("smoke", sets=words[5::2], environ={}) == run.wishes() and set(words[4::2]) == {"--set"}


def test_a_stage_that_is_made_again_takes_nothing_from_the_report(run: Run) -> None:
    before = sections(report.text_of(run))
    again(run, "chat_eval", {}, end=ev.Failed(error="no luck"))
    script = attempt(run, "base_eval")  # still at it
    script.say(ev.Phase(name="load"))
    script.write()
    again(run, "sft", {}, [ev.Resumed(step=0), ev.Metrics(step=1, values={"loss": 9.0})], end=ev.Failed(error="broken"))
    during = sections(report.text_of(run))
    for title in ("What each step added", "Side by side", "Training", "Samples of base_eval", "Tokenizer", "Data"):
        assert during[title] == before[title]
    assert "| chat_eval | failed | 3 |" in during["Time and cost, planned and spent"]
    summary = chat_summary()
    summary["models"]["rl"]["spelling"] = CELL | {"accuracy": 0.75, "low": 0.7, "high": 0.8}
    again(run, "chat_eval", summary, [ev.Sample(prompt="Why?", text="Because.", step=0, model="rl")])
    after = sections(report.text_of(run))
    assert "75.0 % (70–80, n=120)" in after["What each step added"] and "### Why?" in after["Side by side"]
    for title in ("Training", "Tokenizer", "Data", "Environment", "Samples of base_eval"):
        assert after[title] == before[title]


@pytest.mark.parametrize("kind", ["empty", "running", "crashed", "failed", "torn", "stopped", "stale"])
def test_a_run_in_any_condition_has_a_report(tmp_path: Path, kind: str) -> None:
    run = make(tmp_path, kind)
    assert report.text_of(run).startswith(f"# {kind}\n") and "</html>" in report.page_of(run)
    manifest.as_json(manifest.manifest(Record(run)))


def test_cost_on_gpus_and_without(run: Run) -> None:
    record = Record(run)
    assert manifest.hourly(record)["dollars_per_hour"] is None
    assert "set report.price" in sections(report.text_of(run))["Time and cost, planned and spent"]
    h100 = {"name": "NVIDIA H100 80GB HBM3", "memory_total": 80 << 30, "memory_used": 40 << 30, "utilisation": 91}
    record.machine["gpus"] = [h100] * 8
    assert manifest.hourly(record) == {"dollars_per_hour": 3.0, "source": "a typical price of h100, $3.0 × 1 GPUs"}
    for history in record.histories.values():
        history.started[-1].world = 8
    facts = manifest.manifest(record)
    assert facts["cost"]["dollars"] == pytest.approx(facts["seconds"] * 24 / 3600)
    text = str(report.blocks(record, facts))
    assert "planned $" in text and "NVIDIA H100 80GB HBM3" in text
    record.machine["gpus"] = [{"name": "Some Card", "memory_total": 1}]
    assert "no price is known of Some Card" in manifest.hourly(record)["source"]
    run.set(["report.price=2.5"])
    assert manifest.hourly(Record(run))["dollars_per_hour"] == 2.5


def test_stages_at_work_at_the_same_time_are_paid_for_once(tmp_path: Path) -> None:
    """Files that arrive while training has begun, an attempt that was stopped, and one later."""
    run = make(tmp_path, "empty", "r")
    for stage, begin, seconds in (("dataset", 100.0, 3600.0), ("pretrain", 700.0, 7200.0), ("sft", 9000.0, 50.0)):
        script = start(run, stage, begin, run.config())
        script.say(ev.Phase(name="work"), seconds / 2)
        script.say(ev.Finished(seconds=seconds), seconds / 2)
        script.write()
    run.set(["report.price=3.6", "data.source=climbmix", "data.shards=9", "data.first_shards=4"])
    facts = manifest.manifest(Record(run))
    assert facts["seconds"] == 7200 + 600 + 50 and facts["cost"]["dollars"] == pytest.approx(7.85)
    assert facts["stages"]["dataset"]["dollars"] == pytest.approx(3.6)
    planned = {name: stage["predicted_s"] or 0.0 for name, stage in facts["stages"].items()}
    assert facts["predicted_s"] == sum(planned.values()) - planned["dataset"] / 2 > 0
    assert "made" not in report.text_of(run).partition("##")[0]
    found = sections(report.text_of(run))["Time and cost, planned and spent"]
    assert "| 2 h 10 min |" in next(line for line in found.splitlines() if line.startswith("| total"))


def test_a_gpu_that_does_not_say_how_busy_it_is(run: Run) -> None:
    record = Record(run)
    record.machine["gpus"] = [{"name": "Card", "memory_total": 1 << 30, "memory_used": 1, "utilisation": None}]
    assert "how busy is not known" in str(report.blocks(record)) and "0 % busy" not in str(report.blocks(record))


@pytest.mark.parametrize(
    ("name", "gib", "kind"),
    [
        ("NVIDIA A100-SXM4-40GB", 39.6, "a100-40"),
        ("NVIDIA A100 80GB PCIe", 79.2, "a100-80"),
        ("NVIDIA GeForce RTX 4090", 24, "rtx4090"),
        ("Tesla T4", 15, "t4"),
        ("NVIDIA T400", 4, None),
        ("NVIDIA GH200 480GB", 96, None),
    ],
)
def test_gpus_are_known_by_the_names_they_have(name: str, gib: float, kind: str | None) -> None:
    assert gpus.named(name, int(gib * 2**30)) == kind


class Page(HTMLParser):
    """Every element is closed in order; collects tags, attributes and the text of each tag."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.attributes, self.text = list[str](), set[str](), list[tuple[str, str | None]](), ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_and_holds_everything(run: Run) -> None:
    text = report.page_of(run)
    found = Page(text)
    assert not found.tags & {"script", "img", "link", "iframe", "object", "base", "form"}
    assert not any(name.startswith("on") or name in ("src", "style") for name, _ in found.attributes)
    assert {value[0] for name, value in found.attributes if name == "href" and value} == {"#"}
    assert not any("://" in (value or "") for _, value in found.attributes)
    assert not re.search(r"url\(|@import", text.partition("</style>")[0])
    assert "svg" in found.tags and text.count("<polyline") >= 8
    assert "prefers-color-scheme: dark" in text and "Content-Security-Policy" in text
    for title in sections(report.text_of(run)):
        assert title.removeprefix("# ") in found.text
    anchors = [value for name, value in found.attributes if name == "id"]
    assert all(value[1:] in anchors for name, value in found.attributes if name == "href" and value)


def test_what_models_and_people_write_is_never_markup(run: Run) -> None:
    evil = "</blockquote><script>alert(1)</script>\x00\x1b[31m"
    again(run, "chat_eval", chat_summary(), [ev.Sample(prompt=evil, text=evil, step=0, model=evil)])
    again(run, "dataset", {evil: evil})
    write_atomic(run.dir / "notes.md", evil.encode())
    text = report.page_of(run)
    assert "script" not in Page(text).tags and "alert(1)" in Page(text).text
    assert not set("\x00\x1b") & set(text) and not set("\x00\x1b") & set(report.text_of(run).replace(evil, "", 1))


def test_headings_of_a_page_are_its_contents() -> None:
    prompts = [Heading("time cost", 3), Heading("天", 3)]
    found = Page(page("t", [Heading("Run", 1), Heading("Time & cost"), Text("x < y"), *prompts]))
    assert [value for name, value in found.attributes if name == "id"] == ["time-cost"]
    assert ("href", "#time-cost") in found.attributes and ("id", "time-cost") in found.attributes
    assert "x < y" in found.text
