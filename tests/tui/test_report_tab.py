"""The Report tab: sections, sorting, samples, wrong answers, votes, the manifest; and what is not there yet."""

from __future__ import annotations

import asyncio
import json
import threading

from picollm.run import failures, votes
from picollm.run.folder import Run, write_atomic
from tests.tui.conftest import NARROW, WIDE, shown, until
from tui.report_text import Section
from tui.widgets import report

REPORT = """# r

Made in 3 min.

## What each step added

Accuracy.

| task | base | sft |
|---|---|---|
| adding | 9.0 % (5–13, n=120) | 41.0 % |
| spelling | 12.5 % (8–20, n=120) | – |

## Side by side

**sft** (3 words)

> It \\[31m is\\
> two lines
"""


def lay_out(run: Run) -> None:
    write_atomic(run.dir / "report" / "report.md", REPORT)
    manifest = {"run": "r", "config": {"sft": {"lr": 0.8}, "run": {"seed": 7}}, "seconds": 213.1, "tags": ["a", "b"]}
    write_atomic(run.dir / "run_manifest.json", json.dumps(manifest))
    for step, said in ((100, "soup soup soup"), (200, "a list of words")):
        row = {"step": step, "prompt": "The list is", "text": said, "finish_reason": "length", "tokens": 4}
        other = row | {"prompt": "A tree", "text": "grows"}
        file = run.dir / "samples" / "pretrain" / f"step-{step:06d}.jsonl"
        write_atomic(file, json.dumps(row) + "\n" + json.dumps(other) + "\n{torn")
    for model in ("mid", "sft"):
        (run.dir / "eval" / failures.FOLDER / model).mkdir(parents=True, exist_ok=True)
        for file in (run.dir / "eval" / failures.FOLDER / model).glob("*"):
            file.unlink()
        failures.write(
            run, model, "adding", [{"index": 4, "prompt": "1+1?", "expected": "2", "got": f"{model} says 3"}]
        )
    failures.write(run, "sft", "spelling", [
        {"index": n, "prompt": f"Spell w{n}.", "expected": "w", "got": "v\x1b[2J"} for n in (1, 2)
    ])  # fmt: skip
    (run.dir / "votes.jsonl").unlink(missing_ok=True)
    votes.add(run, votes.Vote(prompt="Who?", a=votes.Judged(model="r/a", answer="", scores={"clear": 4}),
                              b=votes.Judged(model="r/b", answer=""), winner="a", note="shorter"))  # fmt: skip


async def test_every_section_is_there_and_its_keys_work(a_run, an_app, monkeypatch) -> None:
    run = a_run("stopped")
    lay_out(run)
    app = an_app("stopped", tab="report")
    copied: list[str] = []
    monkeypatch.setattr(app, "copy", lambda words, what: copied.append(words))
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "Made in 3 min." in shown(app) and "9.0 % (5–13, n=120)" in shown(app))
        pane = app.main.panes["report"]
        screen = shown(app)
        assert screen.index("adding") < screen.index("spelling")
        await pilot.press("t", "t")
        await until(pilot, lambda: "base↓" in shown(app) and shown(app).index("spelling") < shown(app).index("adding"))
        await pilot.press("T")
        await until(pilot, lambda: "base↑" in shown(app) and shown(app).index("adding") < shown(app).index("spelling"))
        await pilot.press("Y", "right")
        assert "adding\t9.0 % (5–13, n=120)\t41.0 %" in copied[0]
        await until(pilot, lambda: "It [31m is" in shown(app))
        await pilot.press("l")
        await until(pilot, lambda: "step 100" in shown(app) and "soup soup soup" in shown(app))
        assert shown(app).index("soup soup soup") < shown(app).index("a list of words")
        await pilot.press("n")
        await until(pilot, lambda: "prompt 2 of 2" in shown(app) and "grows" in shown(app))
        await pilot.press("l")
        await until(pilot, lambda: "sft · adding" in shown(app))
        assert "mid says 3" in shown(app) and "sft says 3" in shown(app)
        await pilot.press("right_square_bracket", "n")
        await until(pilot, lambda: "sft · spelling" in shown(app) and "Spell w2." in pane.part.plain)
        assert "not asked" in shown(app) and "\x1b" not in shown(app)
        await pilot.press("left_square_bracket", "m")
        await until(pilot, lambda: "mid · adding" in shown(app))
        await pilot.press("l")
        await until(pilot, lambda: "r/a : r/b" in shown(app) and "1 : 0" in shown(app) and "shorter" in shown(app))
        await pilot.press("l", "n", "enter", "n", "enter")
        await until(pilot, lambda: "lr" in shown(app) and "0.8" in shown(app))
        await pilot.press("n", "Y")
        assert copied[-1] == "config.sft.lr = 0.8\n"
        await pilot.press("right_square_bracket", "right_square_bracket", "enter")
        await until(pilot, lambda: "2 entries" in shown(app) and pane.part.at == 6)


async def test_what_is_laid_out_late_is_of_the_order_that_is_shown(a_run, an_app, monkeypatch) -> None:
    run = a_run("finished")
    long = "\n".join(f"Words {number}.\n" for number in range(60))
    write_atomic(run.dir / "report" / "report.md", REPORT.replace("## Side by side", f"{long}\n## Side by side"))
    app = an_app("finished", tab="report")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "Made in 3 min." in shown(app))
        pane = app.main.panes["report"]
        await pilot.press("home")
        pane.at = next(number for number, part in enumerate(pane.parts) if part.title == "What each step added")
        pane._draw()
        await until(pilot, lambda: "Words 59" in pane.lines.plain)
        assert "base↓" not in pane.lines.plain
        monkeypatch.setattr(report, "LATER_S", 0.02)
        column = pane.part.column
        pane.part.column = 1
        pane._draw()  # its rest is laid out later
        assert "base↓" in pane.lines.plain and "Words 59" not in pane.lines.plain
        pane.part.column = column
        pane._draw()  # as kept, at once
        await pilot.pause(0.2)
        assert "base↓" not in pane.lines.plain and "Words 59" in pane.lines.plain
        await pilot.resize_terminal(*NARROW)
        await until(pilot, lambda: len(pane._kept) == 1, what="lines of another width are not kept")


async def test_what_is_there_already_can_be_read_before_there_is_a_report(a_run, an_app) -> None:
    a_run("failed")
    app = an_app("failed", tab="report")
    async with app.run_test(size=NARROW) as pilot:
        await until(pilot, lambda: "No report yet" in shown(app))
        for words in ("No samples yet", "No wrong answers kept yet", "No votes yet", "No manifest yet"):
            await pilot.press("l")
            await until(pilot, lambda words=words: words in shown(app))
        await pilot.press("n", "p", "m", "t", "T", "enter", "right_square_bracket", "l")
        await until(pilot, lambda: "No report yet" in shown(app))


async def test_a_manifest_that_is_none_is_said(a_run, an_app) -> None:
    run = a_run("finished")
    write_atomic(run.dir / "run_manifest.json", "{torn")
    app = an_app("finished", tab="report")
    async with app.run_test(size=NARROW) as pilot:
        await until(pilot, lambda: "[What each step added]" in shown(app) or "‹" in shown(app))
        await pilot.press("h")
        await until(pilot, lambda: "run_manifest.json is not readable" in shown(app))


async def test_a_report_that_comes_while_the_empty_one_is_still_read_stays(a_run, an_app, monkeypatch) -> None:
    a_run("finished")
    waiting, released, read = threading.Event(), threading.Event(), report.sections

    def slow(text: str) -> list[Section]:
        if not text:
            waiting.set()
            released.wait(60)
        return read(text)

    monkeypatch.setattr(report, "sections", slow)
    app = an_app("finished")
    async with app.run_test(size=NARROW) as pilot:
        await until(pilot, lambda: app.main.report[0])
        await pilot.press("6")
        await until(pilot, lambda: "[Report]" not in shown(app) and "›" in shown(app))
        pane = app.main.panes["report"]
        old = asyncio.create_task(pane.update_from("", ""))
        await until(pilot, waiting.is_set)
        new = asyncio.create_task(pane.update_from(*app.main.report))
        await pilot.pause(0.3)
        released.set()
        await asyncio.gather(old, new)
        assert len(pane.parts) > 10
