"""The command line, `picollm`: everything the app does, in plain text, for scripts, pipes and CI.

Exit codes: 0 done, 1 our fault, 2 the person's mistake, 3 stopped as asked. Errors are one line on stderr.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from picollm import (
    cli_follow,
    cli_identity,
    cli_launch,
    cli_plan,
    cli_profile,
    cli_report,
    cli_runs,
    cli_serve,
    cli_show,
    cli_talk,
    cli_watch,
)
from picollm.run import branch, conductor, launch, pipeline, recheck, serving
from picollm.run import config as settings
from picollm.run.checks import CHECKS
from picollm.run.errors import UserError
from picollm.run.folder import ACTIVE, Run, folder_of, picollm_home, runs_folder
from picollm.run.history import StageHistory

DEFAULT_RUN = "demo"

app = typer.Typer(
    name="picollm",
    help="Make your own chatbot from raw text: each stage of a run, from here or from picollm-tui.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RunName = Annotated[str | None, typer.Option("--run", help="run name (or its folder); default: the newest")]
NewRunName = Annotated[str | None, typer.Option("--run", help=f"run name; default: {DEFAULT_RUN}")]
Profile = Annotated[str | None, typer.Option("--profile", help="profile of a new run: pocket, smoke, …")]
File = Annotated[Path | None, typer.Option("--config", help="your own settings, a TOML file")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="one setting, table.key=value; may be repeated")]
Processes = Annotated[str | None, typer.Option("--nproc", help="processes per node: auto (one per GPU) or a number")]
Json = Annotated[bool, typer.Option("--json", help="machine-readable")]


@app.command()
def run(
    run: NewRunName = None,
    profile: Profile = None,
    config: File = None,
    set: Sets = None,
    from_: Annotated[str | None, typer.Option("--from", help="make this stage and all after it again")] = None,
    only: Annotated[str | None, typer.Option("--only", help="make this one stage again")] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="with --from: a new run on what this one made before that stage")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="start over: ignore checkpoints")] = False,
    nproc: Processes = None,
) -> int:
    """Make a run, or go on with it, and follow it to its end. Training goes on when this is hung up."""
    if from_ and only:
        raise UserError("--from and --only exclude each other: choose one")
    for name in (from_, only):
        if name:
            pipeline.stage(name)
    if base is not None:
        if not from_:
            raise UserError("--base needs --from STAGE: the first stage that the new run makes itself")
        if profile:
            raise UserError("--base brings its own profile; change single settings with --set or --config")
        return follow_branch(base, run, from_, config, sets_of(set, nproc))
    found = prepare(run or DEFAULT_RUN, profile, config, sets_of(set, nproc))
    return follow(found, from_, only, fresh)


@app.command()
def resume(run: RunName = None, set: Sets = None, nproc: Processes = None) -> int:
    """Go on with a run that was stopped, failed or crashed."""
    found = existing(run)
    found.set(sets_of(set, nproc))
    return follow(found, None, None, False)


@app.command()
def stop(
    run: RunName = None,
    kill: Annotated[bool, typer.Option("--kill", help="at once, without saving")] = False,
    serve: Annotated[bool, typer.Option("--serving", help="end the inference process, too")] = False,
) -> int:
    """Ask what runs to save and stop; asked twice, it is killed."""
    found = existing(run)
    names = conductor.stop(found, kill=kill)
    if names:
        print(f"{'killed' if kill else 'asked to save and stop'}: {', '.join(names)}")
    else:
        print("nothing runs")
    if serve:
        print("inference process ended" if serving.stop_serving(found) else "no inference process runs")
    return 0


@app.command()
def status(run: RunName = None, as_json: Json = False) -> int:
    """The state of every stage, in order."""
    found = existing(run)
    print(cli_show.status_json(found) if as_json else cli_show.status_table(found))
    return 0


@app.command()
def plan(
    run: NewRunName = None,
    profile: Profile = None,
    config: File = None,
    set: Sets = None,
    nproc: Processes = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help=f"for such GPUs instead: {cli_plan.names()}")] = None,
    count: Annotated[int, typer.Option("--count", help="how many of them")] = 1,
    price: Annotated[float | None, typer.Option("--price", min=0, help="dollars per GPU and hour")] = None,
) -> int:
    """What a run takes and how long, measured here first when that was not done yet; --gpu: elsewhere, by a table."""
    if gpu is not None:
        wishes = Run.open(run).wishes() if run else settings.load(profile, config, sets_of(set, nproc))
        print(cli_plan.assumed_text(wishes, gpu, count, price))
        return 0
    if run is None and not (profile or config or set) and Run.all():
        found = Run.all()[0]
    else:
        found = prepare(run or DEFAULT_RUN, profile, config, sets_of(set, nproc))
    resolved = found.plan()
    if resolved is None:
        cli_follow.require(found, ["doctor", "preflight"])
        resolved = found.plan()
    if resolved is None:
        raise UserError(f"{found.name}: preflight left no plan.json; picollm run --run {found.name} --only preflight")
    print(cli_plan.measured_text(found, resolved, price))
    return 0


@app.command()
def doctor(
    run: RunName = None,
    profile: Profile = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help=f"this check again: {', '.join(CHECKS)}; may be repeated")
    ] = None,
) -> int:
    """Check this machine: Python, packages, memory, disk, network, GPUs. Exit code 1 when a check fails."""
    recheck.known(only or [])
    with contextlib.ExitStack() as stack:
        found = existing(run) if run else stack.enter_context(throwaway(profile))
        if only:  # the stage of the run is left as it was; the app shows the newer of both
            checks = list(recheck.make(found.dir, only))
            print(cli_show.checks_text(checks))
            return int(bool(cli_show.failed_checks(checks)))
        code = launch.launch_here(found.dir, "doctor")
        history = StageHistory(found, "doctor").read_all()
        if code and not history.checks:
            console = found.console_file("doctor", max(found.attempts("doctor"), default=1))
            raise UserError(f"doctor did not run: {serving.last_line(console)}")
        print(cli_show.checks_text(history.checks))
        return 1 if code or cli_show.failed_checks(history.checks) else 0


@app.command()
def chat(
    run: RunName = None,
    model: Annotated[str | None, typer.Option("--model", help="rl, sft, mid or base; default: the best made")] = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="print the answer to this and exit")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0, max=5)] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=0)] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0)] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1)] = None,
) -> int:
    """Talk to what was made. Without -p: a conversation, with /new and /quit."""
    found = existing(run)
    talk = cli_talk.resolve(
        found.wishes().chat, temperature=temperature, top_k=top_k, seed=seed, max_tokens=max_tokens
    )  # fmt: skip
    client, known = cli_talk.connect(found)
    chosen = cli_talk.choose(model, known)
    if prompt is None:
        cli_talk.converse(found, chosen, talk)
    else:
        cli_talk.say(client, chosen, [{"role": "user", "content": prompt}], talk)
    return 0


@app.command()
def compare(
    run: RunName = None,
    model: Annotated[str | None, typer.Option("--model", help="the chat model; default: the best made")] = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="this prompt instead of the run's")] = None,
) -> int:
    """Base model and chat model on the same prompts with the same seed, measures below each answer."""
    found = existing(run)
    talk = cli_talk.resolve(found.wishes().chat)
    prompts = [prompt] if prompt else found.prompts()
    client, known = cli_talk.connect(found)
    chosen = cli_talk.choose(model, known)
    models = [name for name in ("base", chosen) if name in known]
    cli_talk.compare(client, list(dict.fromkeys(models)), prompts, talk)
    return 0


@app.command()
def config(
    run: RunName = None,
    profile: Profile = None,
    config: File = None,
    set: Sets = None,
    template: Annotated[bool, typer.Option("--template", help="print the commented defaults")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="only what differs from the defaults")] = False,
) -> int:
    """Every setting and the layer it comes from."""
    if template:
        print(settings.template(), end="")
        return 0
    layers = cli_show.run_layers(existing(run)) if run else settings.layers(profile, config, set or ())
    print(cli_show.settings_text(layers, only_different=diff))
    return 0


app.add_typer(cli_identity.identity)
app.add_typer(cli_runs.runs)
app.command()(cli_launch.launch)
app.command()(cli_profile.profile)
app.command()(cli_report.report)
app.command()(cli_serve.serve)
app.command()(cli_serve.web)
app.command()(cli_watch.watch)


# what the commands share ----------------------------------------------------------------------------------------------


existing = cli_show.existing


def sets_of(given: list[str] | None, nproc: str | None) -> list[str]:
    return [*(given or []), *([f"launch.nproc={nproc}"] if nproc is not None else [])]


def prepare(name: str, profile: str | None, file: Path | None, sets: list[str]) -> Run:
    """A new run with these settings, or an existing one with them as a new revision.

    Raises `UserError` where an existing run would have to change its profile.
    """
    there = folder_of(name) / "config.toml"
    if not there.exists():
        config = settings.load(profile, file, sets)
        try:
            return Run.create(name, config)
        except UserError:
            if not there.exists():  # else somebody made it at this very moment: go on with that one
                raise
    run = Run.open(name)
    if profile is not None:
        sets = [f"run.profile={profile}", *sets]
    if file is not None:
        own = settings.file_values(file)
        run.set([f"run.profile={own.pop('run.profile')}"] if "run.profile" in own else [])
        run.save_config(settings.build(settings.flat(run.wishes()) | own))
    run.set(sets)
    return run


def follow(run: Run, from_stage: str | None, only: str | None, fresh: bool) -> int:
    if only:
        return cli_follow.run_stages(run, [only], redo=True, fresh=fresh)
    if from_stage:
        return cli_follow.run_stages(run, list(pipeline.from_stage(from_stage)), redo=True, fresh=fresh)
    active = any(status.state in ACTIVE for status in run.statuses())
    if fresh and active:
        raise UserError(f"{run.name} is running; stop it before starting over: picollm stop --run {run.name}")
    return cli_follow.run_stages(run, list(pipeline.NAMES), redo=fresh, fresh=fresh)


def follow_branch(base: str, name: str | None, stage: str, file: Path | None, sets: list[str]) -> int:
    """A new run on what `base` made before `stage`, followed to its end."""
    source = Run.open(base)
    changes = {key: value for _, layer in settings.layers(None, file, sets)[2:] for key, value in layer.items()}
    run = branch.branch(source, name or f"{source.name}-{stage}", stage, changes)
    print(f"run {run.name}: everything before {stage} is what {source.name} made")
    left = [status.name for status in run.statuses() if status.state != "done"]
    return cli_follow.run_stages(run, left)


@contextlib.contextmanager
def throwaway(profile: str | None):
    """A run for the doctor alone, where runs would be, since its disk is one of the things to check."""
    there = runs_folder().exists()
    run = Run.create(f"doctor-{os.getpid()}", settings.load(profile))
    try:
        yield run
    finally:
        shutil.rmtree(run.dir, ignore_errors=True)
        if not there:
            with contextlib.suppress(OSError):
                runs_folder().rmdir()


# the way in and the way out -------------------------------------------------------------------------------------------


def invoke(argv: Sequence[str] | None = None) -> int:
    """Run one command line; every way to end becomes an exit code and at most one line on stderr."""
    try:
        code = typer.main.get_command(app).main(args=argv, prog_name="picollm", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except UserError as error:
        return complain(str(error), 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does; nothing must be written at exit either.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # typer's own, for wrong arguments
            return complain(f"{error.format_message()} (picollm --help says more)", 2)
        if type(error).__name__ == "Abort":
            return 130
        if isinstance(error, OSError) and error.errno in (13, 28, 30):
            return complain(f"{error.strerror}: {error.filename or runs_folder()}", 2)
        return complain(f"{type(error).__name__}: {error}; the traceback is in {keep_traceback()}", 1)


def complain(text: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print("error: " + " ".join(text.split("\n")), file=sys.stderr, flush=True)
    return code


def keep_traceback() -> Path:
    """Write the current exception where the person can find it; returns the file."""
    name = f"picollm-error-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    for folder in (picollm_home(), Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(traceback.format_exc(), encoding="utf-8")
            return folder / name
        except OSError:
            continue
    return Path(os.devnull)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """`[project.scripts]` entry point."""
    sys.exit(invoke(argv))


if __name__ == "__main__":
    main()
