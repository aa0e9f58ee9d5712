"""Report: everything measured, in report/report.md and run_manifest.json."""

from __future__ import annotations

import hashlib

from picollm.run import manifest, report
from picollm.run.folder import write_atomic
from picollm.run.report_blocks import markdown
from picollm.run.stage import Outcome, StageContext, main


def work(ctx: StageContext) -> Outcome:
    record = manifest.Record(ctx.run)
    facts = manifest.manifest(record)
    text = markdown(report.blocks(record, facts))
    write_atomic(ctx.run.dir / "report" / "report.md", text)
    write_atomic(ctx.run.dir / "run_manifest.json", manifest.as_json(facts))
    ctx.message(f"report/report.md: {len(text.splitlines())} lines; as a page: picollm report --html")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Outcome(paths={"report": "report/report.md", "manifest": "run_manifest.json"}, artifacts={"report": digest})


if __name__ == "__main__":
    main("report", work)
