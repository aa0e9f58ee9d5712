"""Who can answer: the models and checkpoints of any run, and the models of an OpenAI-compatible endpoint.

`catalogue` looks at the disk, and asks the endpoint if the environment names one: call it in a thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from picollm.run import endpoint, pipeline, serving
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.models import Model, family, is_base, models

MOST_RUNS = 60


class Voice(msgspec.Struct, frozen=True, kw_only=True):
    """One who answers. `run` is the folder of its run, `url` the address of its endpoint; one of the two is empty.

    It holds no key: the environment does.
    """

    model: str
    run: str = ""
    url: str = ""

    @property
    def continues(self) -> bool:
        """A base model: it continues text, it does not answer."""
        return not self.url and is_base(self.model)

    def title(self, here: str = "") -> str:
        """As the screen names it: the model alone where it is one of the run `here`."""
        if self.url:
            return f"{endpoint.Endpoint(self.url).host}/{self.model}"
        return self.model if self.run == here else f"{Path(self.run).name}/{self.model}"


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """A voice, and what its checkpoint says of it (of endpoints nothing is known)."""

    voice: Voice
    stage: str = ""
    step: int = 0
    context: int | None = None
    score: float | None = None

    @property
    def about(self) -> str:
        """A few words for a list."""
        if self.voice.url:
            return "endpoint, not encrypted" if endpoint.Endpoint(self.voice.url).in_the_clear else "endpoint"
        found = [pipeline.stage(self.stage).title] if self.stage else []
        found += [f"step {self.step:,}"] if self.step else []
        found += [f"{self.score:.3f} bits per byte"] if self.score is not None and self.voice.continues else []
        return ", ".join(found)


def of_run(run: Run, finished: Iterable[str] = ()) -> list[Known]:
    """The models of a run in the order they were made. `finished`: those that are there whatever the folder shows."""
    found = [_known(run, model) for model in models(run)]
    there = {known.voice.model for known in found}
    for name in finished:
        if name not in there:
            found.append(Known(voice=Voice(model=name, run=str(run.dir)), stage=pipeline.MODEL_STAGES[name]))
    order = list(pipeline.MODEL_STAGES)
    return sorted(found, key=lambda known: order.index(family(known.voice.model)))


def _known(run: Run, model: Model) -> Known:
    return Known(voice=Voice(model=model.name, run=str(run.dir)), stage=model.stage, step=model.step,
                 context=model.context, score=model.score)  # fmt: skip


def catalogue(here: Run, finished: Iterable[str] = ()) -> tuple[list[Known], str]:
    """Everybody who can be asked: this run's, then other runs', newest first, then the endpoint's; and why the last
    are missing, if they are."""
    found = of_run(here, finished)
    for run in Run.all()[:MOST_RUNS]:
        if run.dir != here.dir:
            found += of_run(run)
    try:
        server = endpoint.from_environment()
        return found + (of_endpoint(server) if server else []), ""
    except UserError as error:
        return found, str(error)


def of_endpoint(server: endpoint.Endpoint) -> list[Known]:
    """The models that an endpoint says it has. Raises `UserError`."""
    return [Known(voice=Voice(model=name, url=server.url)) for name in serving.Client(server).models()]


def stage_settings(run: Run) -> dict[str, object]:
    """The settings that decide what a run's models are, flat: `sft.lr` → 0.8. Raises `UserError`."""
    found: dict[str, object] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            found[prefix] = value

    walk("", msgspec.to_builtins(run.config()))
    return {key: value for key, value in found.items() if not key.startswith(("chat.", "log.", "launch."))}
