"""Identity: build the rows that tell the model who it is, or take the person's own, and verify their checksum."""

from __future__ import annotations

from pathlib import Path

from picollm.run.stage import Outcome, StageContext, main
from picollm.tasks.identity import build, verify


def work(ctx: StageContext) -> Outcome:
    own = ctx.config.identity.file
    path = Path(own).expanduser().absolute() if own else ctx.run.stage_dir("identity") / "identity.jsonl"
    if not own:
        ctx.phase("build")
        build(path)
    ctx.phase("verify")
    manifest = verify(path)
    ctx.message(f"{manifest.rows:,} rows on {len(manifest.themes)} themes, sha256 {manifest.sha256[:12]} verified")
    return Outcome(
        paths={"rows": ctx.relative(path)},
        artifacts={"rows": manifest.sha256},
        summary={"rows": manifest.rows, "themes": len(manifest.themes), "sha256": manifest.sha256},
    )


if __name__ == "__main__":
    main("identity", work)
