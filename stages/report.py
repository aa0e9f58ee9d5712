"""Report: everything measured, in report/report.md and run_manifest.json."""

from __future__ import annotations

import hashlib
import json

from picollm.run import report
from picollm.run.folder import write_atomic
from picollm.run.stage import Outcome, StageContext, main


def work(ctx: StageContext) -> Outcome:
    facts = report.manifest(ctx.run)
    text = report.markdown(ctx.run)
    write_atomic(ctx.run.dir / "report" / "report.md", text)
    write_atomic(ctx.run.dir / "run_manifest.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    ctx.message(f"report/report.md: {len(text.splitlines())} lines")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Outcome(paths={"report": "report/report.md", "manifest": "run_manifest.json"}, artifacts={"report": digest})


if __name__ == "__main__":
    main("report", work)
