"""Dataset: gather the raw text, drop duplicates, set validation documents aside."""

from __future__ import annotations

from pathlib import Path

from picollm.data import own_text, pydocs
from picollm.data.shards import write_text
from picollm.run.folder import picollm_home
from picollm.run.stage import Outcome, StageContext, main, watched


def work(ctx: StageContext) -> Outcome:
    source = ctx.config.data.source

    def look(done: int, files: int) -> None:
        ctx.progress(done, files)
        ctx.raise_if_stopped()

    ctx.phase("read")
    if source == "pydocs":
        documents = pydocs.documents()
        provenance = pydocs.provenance()
    else:
        documents, counts = own_text.read_source(Path(source).expanduser(), look)
        provenance = {"source": str(Path(source).expanduser().absolute()), **counts.as_dict()}
        for problem in counts.problems:
            ctx.warning(problem)
    ctx.raise_if_stopped()
    ctx.phase("write")
    text = write_text(
        watched(ctx, documents, len(documents)),
        picollm_home(),
        provenance=provenance,
        val_share=ctx.config.data.val_share,
    )
    ctx.message(f"{text.manifest['documents']:,} documents, {text.manifest['bytes']:,} bytes of text")
    return Outcome(
        paths={"text": str(text.folder)},
        artifacts={"text": text.hash},
        summary={key: value for key, value in text.manifest.items() if not isinstance(value, dict | list)} | provenance,
    )


if __name__ == "__main__":
    main("dataset", work)
