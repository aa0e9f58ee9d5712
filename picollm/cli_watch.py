"""`picollm watch`: what the app shows, as plain lines. One line for everything that matters, in order; no colours, no
cursor movement, no symbols, so it can be piped, kept, and read aloud. `--json`: one object a line instead.

Watching asks for nothing and stops nothing: it reads the run folder, and leaves when nothing runs any more.
"""

from __future__ import annotations

import heapq
import re
import time
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer

from picollm.cli_follow import DONE, OURS, STOPPED, USERS, duration, failure_code, size_of
from picollm.cli_show import existing
from picollm.run import event_file, lease, pipeline
from picollm.run import events as ev
from picollm.run.folder import ACTIVE, Run, StageStatus

POLL_S = 0.5
COMPLAINTS = ("failed", "crashed", "stalled", "ignored", "mending")
WORTH_SAYING = ("stalled", "stopping", "crashed", "stale")
"""States that no event of the stage itself tells of."""
BOUNDS = re.compile(r"(^|[/_])(low|high)(_\d+)?$")  # ends of intervals, beside the figure they belong to


def watch(
    run: Annotated[str | None, typer.Option("--run", help="run name (or its folder); default: the newest")] = None,
    stage: Annotated[str | None, typer.Option("--stage", help="this stage alone")] = None,
    begin: Annotated[bool, typer.Option("--all", help="from the run's beginning, not from now")] = False,
    every: Annotated[float, typer.Option("--every", min=0, help="seconds between lines of progress")] = 15.0,
    wait: Annotated[bool, typer.Option("--wait", help="stay when nothing runs, until something does and ends")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> int:
    """Tell what happens in a run, line by line, until it rests. Exit code 0 when all of it is done."""
    if stage is not None:
        pipeline.stage(stage)
    watcher = Watcher(existing(run), stage, begin=begin, every=every, as_json=as_json)
    return watcher.watch(wait)


class Watcher:
    """Reads events as they come and says them."""

    def __init__(self, run: Run, stage: str | None, *, begin: bool, every: float, as_json: bool) -> None:
        self.run, self.every, self.as_json = run, every, as_json
        self.names = (stage,) if stage else pipeline.NAMES
        self.readers: dict[tuple[str, int], event_file.EventReader] = {}
        self.metrics: dict[str, dict[str, float | None]] = {}
        self.said_at: dict[str, float] = {}
        self.states: dict[str, tuple[int, str]] = {}
        self.codes: dict[str, int] = {}
        self._conductor = event_file.EventReader(run.conductor_events, 0 if begin else size_of(run.conductor_events))
        if not begin:
            for name in self.names:
                for attempt in run.attempts(name):
                    self._reader(name, attempt).offset = size_of(run.events_file(name, attempt))

    def watch(self, wait: bool) -> int:
        """Follow to the end; the exit code."""
        statuses = self._statuses()
        self.say("run", where_it_stands(self.run, statuses), stage="")
        self.states = {status.name: (status.attempt, status.state) for status in statuses}
        while True:
            # What is asked first is true of what is read after it: nothing that ends in between goes unsaid.
            going_on = wait or self._going_on(statuses)
            for stage, attempt, event in self._news():
                wait = wait and not isinstance(event, ev.TERMINAL)
                self._tell(stage, attempt, event)
            statuses = self._statuses()
            self._tell_states(statuses)
            if not going_on and not self._going_on(statuses):
                return self._farewell(statuses)
            time.sleep(POLL_S)

    def say(self, kind: str, text: str, *, stage: str, at: float | None = None, **fields: Any) -> None:
        """One line, at the time of what it tells of."""
        at = time.time() if at is None else at
        if self.as_json:
            line = {"time": round(at, 3), "run": self.run.name, "type": kind} | ({"stage": stage} if stage else {})
            print(msgspec.json.encode(line | fields | {"text": text}).decode(), flush=True)
        else:
            who = f"{pipeline.stage(stage).title}: " if stage else ""
            print(f"{time.strftime('%H:%M:%S', time.localtime(at))}  {who}{' '.join(text.split())}", flush=True)

    # reading --------------------------------------------------------------------------------------------------------

    def _statuses(self) -> list[StageStatus]:
        return [status for status in self.run.statuses() if status.name in self.names]

    def _going_on(self, statuses: list[StageStatus]) -> bool:
        asked = any((self.run.dir / "conductor" / "requests").glob("*.json"))
        return asked or lease.is_held(self.run.conductor_lock) or any(status.state in ACTIVE for status in statuses)

    def _reader(self, stage: str, attempt: int) -> event_file.EventReader:
        key = stage, attempt
        if key not in self.readers:
            self.readers[key] = event_file.EventReader(self.run.events_file(*key))
        return self.readers[key]

    def _news(self) -> Iterator[tuple[str, int, Any]]:
        """What was said since we last looked, of all stages, by time."""

        def of(stage: str, attempt: int, reader: event_file.EventReader) -> Iterator[tuple[float, int, str, int, Any]]:
            number, latest = 0, 0.0
            while events := reader.poll():
                for event in events:
                    number, latest = number + 1, max(latest, event.time)
                    yield latest, number, stage, attempt, event

        sources = [of("", 0, self._conductor)]
        sources += [of(name, n, self._reader(name, n)) for name in self.names for n in self.run.attempts(name)]
        for _, _, stage, attempt, event in heapq.merge(*sources, key=lambda item: item[:3]):
            yield stage, attempt, event

    # telling --------------------------------------------------------------------------------------------------------

    def _tell(self, stage: str, attempt: int, event: Any) -> None:
        if isinstance(event, ev.Metrics):
            self.metrics.setdefault(stage, {}).update(event.values)
            return
        if isinstance(event, ev.Progress):
            due = event.time - self.said_at.get(stage, 0.0) >= self.every or event.step == event.steps
            if not due:
                return
            self.said_at[stage] = event.time
        if isinstance(event, ev.Started):
            self.metrics.pop(stage, None)
        if isinstance(event, ev.Failed):
            self.codes[stage] = USERS if event.code == 2 else OURS
        text = sentence(event, self.metrics.get(stage, {}))
        kind = type(event).__name__.lower()
        if self.as_json and (text or isinstance(event, ev.Sample)):
            fields = msgspec.to_builtins(event, str_keys=True) | {"attempt": attempt}
            if isinstance(event, ev.Progress):
                fields["metrics"] = self.metrics.get(stage, {})
            left_out = ("v", "seq", "time", "type", "text", "stage", "inputs", "versions", "machine")
            fields = {key: value for key, value in fields.items() if key not in left_out}
            self.say(kind, text, stage=stage, at=event.time, **fields)
        elif text:
            self.say(kind, text, stage=stage, at=event.time)

    def _tell_states(self, statuses: list[StageStatus]) -> None:
        for status in statuses:
            now, before = (status.attempt, status.state), self.states.get(status.name)
            self.states[status.name] = now
            awake = before is not None and before[1] == "stalled" and status.state == "running"
            if now != before and (status.state in WORTH_SAYING or awake):
                text = status.state + (f": {status.reason}" if status.reason else "")
                self.say("state", text, stage=status.name, state=status.state, reason=status.reason)

    def _farewell(self, statuses: list[StageStatus]) -> int:
        """The last line, and the exit code: 0 all done, 1 or 2 something failed, 3 not finished."""
        unfinished = [status for status in statuses if status.state not in ("done", "skipped")]
        broken = [status for status in unfinished if status.state in ("failed", "crashed")]
        if not unfinished:
            text, code = f"done: {len(statuses)} of {len(statuses)} stages", DONE
        elif broken:
            title = pipeline.stage(broken[0].name).title
            text = f"{title} {broken[0].state}; go on with: picollm resume --run {self.run.name}"
            code = self.codes.get(broken[0].name) or failure_code(self.run, broken[0])
        elif not any(status.attempt for status in statuses):
            text, code = f"nothing has run yet; start it with: picollm run --run {self.run.name}", STOPPED
        else:
            text, code = f"nothing runs; go on with: picollm resume --run {self.run.name}", STOPPED
        self.say("end", text, stage="", code=code)
        return code


def where_it_stands(run: Run, statuses: list[StageStatus]) -> str:
    """`run demo, profile pocket: 5 of 13 stages done; Pretrain running, step 160 of 400`."""
    done = sum(status.state in ("done", "skipped") for status in statuses)
    text = f"run {run.name}, profile {run.wishes().run.profile}: {done} of {len(statuses)} stages done"
    for status in statuses:
        if status.state in (*ACTIVE, "failed", "crashed", "stopped", "stale"):
            text += f"; {pipeline.stage(status.name).title} {status.state}"
            text += f", step {status.step:,} of {status.steps:,}" if status.steps and status.state != "stale" else ""
            text += f" ({status.reason})" if status.reason else ""
    return text


def sentence(event: Any, metrics: dict[str, float | None]) -> str:
    """What an event says, in words; "" for one that is not worth a line. `metrics`: the stage's newest readings."""
    match event:
        case ev.Started():
            more = [f"attempt {event.attempt}"] * (event.attempt > 1) + [f"{event.world} ranks"] * (event.world > 1)
            return "started" + (f" ({', '.join(more)})" if more else "")
        case ev.Resumed():
            return f"continues at step {event.step:,}" if event.step else ""
        case ev.Phase():
            return f"phase {event.name}"
        case ev.Progress():
            return _progress(event, metrics)
        case ev.Eval():
            read = ", ".join(f"{k} {figure(v)}" for k, v in event.values.items() if not BOUNDS.search(k))
            return f"evaluation {event.name}" + (f" at step {event.step:,}" if event.step else "") + f": {read}"
        case ev.Choice():
            return f"{event.what}: {event.chosen}, the best as measured here"
        case ev.Check():
            wanted = f", wanted {event.wanted}" if event.status != "ok" and event.wanted else ""
            fix = f"; to do: {event.fix}" if event.status != "ok" and event.fix else ""
            return f"check {event.name} {event.status}: {event.found}{wanted}{fix}"
        case ev.Checkpoint():
            return f"checkpoint of step {event.step:,}, {event.bytes / 2**20:,.1f} MiB"
        case ev.Warning():
            return f"warning: {event.text}"
        case ev.Message():
            return event.text
        case ev.Note():
            return f"step {event.step:,}: {event.text}"
        case ev.Ready():
            return "can be used already; it goes on"
        case ev.Finished():
            loss = event.summary.get("loss")
            return f"done in {duration(event.seconds)}" + (f", loss {loss:.4g}" if isinstance(loss, float) else "")
        case ev.Failed():
            return f"failed: {event.error}" + (f"; {event.hint}" if event.hint else "")
        case ev.Stopped():
            return f"stopped and saved at step {event.step:,}" if event.step else "stopped"
        case ev.Exited():
            return f"{pipeline.stage(event.stage).title}: the process is gone, exit code {event.code}" * (
                event.code != 0
            )
        case ev.Conductor():
            return f"conductor: {event.text or event.what}" if event.what in COMPLAINTS else ""
    return ""


def _progress(event: ev.Progress, metrics: dict[str, float | None]) -> str:
    parts = [f"step {event.step:,} of {event.steps:,}"]
    for key, words in (("loss", "loss {}"), ("reward", "reward {}"), ("tok_s", "{} tokens per second")):
        if (value := metrics.get(key)) is not None:
            parts.append(words.format(figure(value)))
    if (step_s := metrics.get("step_s")) is not None and event.steps > event.step:
        parts.append(f"{duration(step_s * (event.steps - event.step))} left")
    return ", ".join(parts)


def figure(value: float | None) -> str:
    """Four digits; whole numbers from ten thousand on; `not a number` for what JSON has no word for."""
    if value is None:
        return "not a number"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
