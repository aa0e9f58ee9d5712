"""Identity: build the rows that tell the model who it is, or take the person's own, and verify their checksum."""

from __future__ import annotations

from pathlib import Path

from picollm.run.stage import Outcome, StageContext, main
from picollm.tasks.identity import build, fitting, verify
from picollm.tasks.mirror import local


def work(ctx: StageContext) -> Outcome:
    wishes = ctx.config.identity
    fitting(wishes)
    if wishes.file:
        ctx.phase("fetch" if "://" in wishes.file else "read")
        path = local(wishes.file, ctx.message)
    else:
        ctx.phase("build")
        path = ctx.run.stage_dir("identity") / "identity.jsonl"
        build(path, wishes.name, wishes.maker, Path(wishes.facts).expanduser() if wishes.facts else None)
    ctx.phase("verify")
    manifest = verify(path)
    about = f"{manifest.name}, made by {manifest.maker}"
    ctx.message(
        f"{manifest.rows:,} rows on {len(manifest.themes)} themes about {about}; sha256 {manifest.sha256[:12]} verified"
    )
    return Outcome(
        paths={"rows": ctx.relative(path)},
        artifacts={"rows": manifest.sha256},
        summary={
            "rows": manifest.rows,
            "themes": len(manifest.themes),
            "sha256": manifest.sha256,
            "name": manifest.name,
            "maker": manifest.maker,
        },
    )


if __name__ == "__main__":
    main("identity", work)
