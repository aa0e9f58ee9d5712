"""`picollm identity`: rows that tell the model who it is, for `identity.file`: build, verify, sign."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from picollm.tasks.identity import Manifest

identity = typer.Typer(
    name="identity",
    help="Rows that tell the model who it is, for identity.file: write them, check them, or accept your own changes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str | None, typer.Option("--name", help="the assistant's name; default: picollm, to sign: as before")]
Maker = Annotated[str | None, typer.Option("--maker", help="who trained it; default: my owner, to sign: as before")]


@identity.command()
def build(
    out: Annotated[Path, typer.Option("--out", help="the .jsonl file to write; its manifest goes beside it")],
    name: Name = None,
    maker: Maker = None,
    facts: Annotated[Path | None, typer.Option("--facts", help="your own questions and answers, .jsonl")] = None,
) -> int:
    """Write the built-in rows under another name, by another maker, with facts of your own."""
    from picollm.tasks import identity as rows  # not at the top: no other command needs it

    out = out.expanduser()
    own = facts.expanduser() if facts else None
    return _said(out, "written", rows.build(out, name or rows.NAME, maker or rows.MAKER, own))


@identity.command()
def verify(file: Annotated[str, typer.Argument(help="a .jsonl file, https://…/rows.jsonl or hf://datasets/…")]) -> int:
    """Compare rows with their manifest; those that lie elsewhere are fetched first."""
    from picollm.tasks import identity as rows
    from picollm.tasks.mirror import local

    path = local(file, say=lambda text: print(text, file=sys.stderr))
    return _said(path, "verified", rows.verify(path, fewest=1))


@identity.command()
def sign(file: Path, name: Name = None, maker: Maker = None) -> int:
    """Accept the rows of a file as they are now: write their manifest; name and maker stay unless given."""
    from picollm.tasks import identity as rows

    file = file.expanduser()
    return _said(file, "signed", rows.sign(file, name or "", maker or ""))


def _said(path: Path, what: str, manifest: Manifest) -> int:
    from picollm.tasks.identity import FEWEST_ROWS

    teach = f"name {manifest.name}, maker {manifest.maker}"
    print(f"{path}: {manifest.rows:,} rows {what}, {teach}, sha256 {manifest.sha256[:12]}")
    if manifest.rows < FEWEST_ROWS:
        print(f"a run wants at least {FEWEST_ROWS:,} rows", file=sys.stderr)
    return 0
