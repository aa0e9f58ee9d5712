"""Doctor: look at the machine before anything is spent on it."""

from __future__ import annotations

import msgspec

from picollm.run.checks import run_checks
from picollm.run.errors import UserError
from picollm.run.stage import Outcome, StageContext, main


def work(ctx: StageContext) -> Outcome:
    counts = {"ok": 0, "warn": 0, "fail": 0}
    failed = []
    for verdict in run_checks(ctx.run, ctx.config):
        ctx.check(**msgspec.structs.asdict(verdict))
        print(f"{verdict.status:4}  {verdict.name}: {verdict.found}" + (f"  -> {verdict.fix}" if verdict.fix else ""))
        counts[verdict.status] += 1
        if verdict.status == "fail":
            failed.append(f"{verdict.name}: {verdict.found} (wanted {verdict.wanted}; {verdict.fix})")
    if failed:
        raise UserError("doctor: " + "; ".join(failed))
    return Outcome(summary=counts)


if __name__ == "__main__":
    main("doctor", work)
