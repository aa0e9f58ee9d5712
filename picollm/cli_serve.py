"""`picollm serve` and `picollm web`: models over TCP, for OpenAI clients and for a browser."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from picollm.run import launch, pipeline
from picollm.run.errors import UserError
from picollm.run.folder import Run, runs_folder

Runs = Annotated[list[str] | None, typer.Option("--run", help="run name; may be repeated; default: the newest")]
Host = Annotated[str, typer.Option("--host", help="address to listen on; all but loopback ask for a token")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one")]
TokenFile = Annotated[Path | None, typer.Option("--token-file", help="the token to ask for, in a file of mode 600")]
WithToken = Annotated[bool, typer.Option("--with-token", help="ask for a token on loopback, too")]
Origins = Annotated[list[str] | None, typer.Option("--allow-origin", help="a web origin whose pages may ask")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps")]
Precision = Annotated[str | None, typer.Option("--precision", help="auto, fp32, bf16 or int8; default: the run's")]
Keep = Annotated[int | None, typer.Option("--keep", min=1, help="most models in memory at once; default: all")]

LOOPBACK, PORT = "127.0.0.1", 8000


def serve(
    run: Runs = None,
    host: Host = LOOPBACK,
    port: Port = PORT,
    token_file: TokenFile = None,
    with_token: WithToken = False,
    allow_origin: Origins = None,
    device: Device = "auto",
    precision: Precision = None,
    keep: Keep = None,
) -> int:
    """An OpenAI-compatible API over the models of one or several runs, until Ctrl-C. docs/serving.md says more."""
    start(run, host, port, token_file, with_token, allow_origin, device, precision, keep)


def web(
    run: Runs = None,
    host: Host = LOOPBACK,
    port: Port = PORT,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="open the page")] = True,
    token_file: TokenFile = None,
    with_token: WithToken = False,
    device: Device = "auto",
    precision: Precision = None,
    keep: Keep = None,
) -> int:
    """Talk to your models in a browser: the same server, with its page opened."""
    start(run, host, port, token_file, with_token, None, device, precision, keep, *(["--open"] if browser else []))


def start(
    names: list[str] | None, host: str, port: int, token_file: Path | None, with_token: bool,
    origins: list[str] | None, device: str, precision: str | None, keep: int | None, *more: str,
) -> NoReturn:  # fmt: skip
    """Become the inference process. Raises `UserError` when there is nothing to serve, before torch is loaded."""
    argv = [sys.executable, "-m", "stages.serve", "--host", host, "--port", str(port), "--device", device, *more]
    for run in chosen(names):
        argv += ["--run", str(run.dir)]
    for origin in origins or []:
        argv += ["--allow-origin", origin]
    argv += ["--token-file", str(token_file.expanduser())] if token_file else []
    argv += ["--with-token"] if with_token else []
    argv += ["--precision", precision] if precision else []
    argv += ["--keep", str(keep)] if keep is not None else []
    sys.stdout.flush()
    os.execve(sys.executable, argv, launch.child_environment())


def chosen(names: list[str] | None) -> list[Run]:
    """The named runs, or the newest. Raises `UserError` for one that is not there or has no model yet."""
    if names:
        runs = [Run.open(name) for name in names]
    else:
        runs = Run.all()[:1]
        if not runs:
            raise UserError(f"no runs in {runs_folder()}; start one with: picollm run")
    for run in runs:
        if not any(run.finished(stage) for stage in pipeline.MODEL_STAGES.values()):
            raise UserError(f"run '{run.name}' has no model yet; make one with: picollm run --run {run.name}")
    return runs
