"""What a run would take, before there is one: on this machine as a run measured it, or on one of the table.

The form of a new run shows this beside the settings and makes it anew at every change, so it takes milliseconds.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterable

import msgspec

from picollm.run import estimate, gpus, memory, pipeline, plan
from picollm.run import events as ev
from picollm.run.config import Config
from picollm.run.errors import UserError
from picollm.run.folder import Run, runs_folder
from picollm.run.machine import Gpus

COUNTS = (1, 2, 4, 8)
LOOK_BACK = 20


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run might go. `measured` with `how`: this machine, as the run `source` of a `profile` found it; else
    `count` of a `kind` from `gpus.GPUS`, `here` when this machine has them."""

    label: str
    kind: str = ""
    count: int = 1
    here: bool = False
    source: str = ""
    profile: str = ""
    measured: plan.Measured | None = None
    how: memory.How | None = None


def places(runs: Iterable[Run]) -> list[Place]:
    """This machine first, as the newest run of each profile measured it; then every kind of the table. `runs`: where
    measurements may be found."""
    found: list[Place] = []
    for run in list(runs)[:LOOK_BACK]:
        place = _measured_by(run)
        if place is not None and place.profile not in {other.profile for other in found}:
            found.append(place)
    kinds = _gpus_here()
    if kinds:
        kind = max(set(kinds), key=kinds.count)
        found.append(_of_table(kind, kinds.count(kind), here=True))
    else:
        found.append(Place(label="this machine, if it is like two CPU cores", kind="cpu", here=True))
    found += [_of_table(kind, count) for kind, row in gpus.GPUS.items() for count in COUNTS
              if row.device == "cuda" or count == 1]  # fmt: skip
    return found


def first_place(places: list[Place], profile: str) -> int:
    """Which of them to show first: this machine as a run of this profile measured it, since a model of another size or
    in another precision has another speed; else as the table has it."""
    wanted = [place.profile == profile for place in places]
    return wanted.index(True) if any(wanted) else next(n for n, place in enumerate(places) if not place.measured)


def forecast(config: Config, place: Place, stage: str = "") -> estimate.Estimate:
    """`stage`: the first one that is made, on what another run made before it; empty: all are.

    Raises `UserError` when the settings leave too much open, or when the model does not fit."""
    found = _whole(config, place)
    if not stage:
        return found
    before = pipeline.NAMES[1 : pipeline.NAMES.index(stage)]  # the doctor looks again
    seconds = {name: 0.0 if name in before else value for name, value in found.seconds.items()}
    eta = estimate.eta_seconds(config, seconds)
    cost = None if found.cost is None or not found.eta_s else found.cost * eta / found.eta_s
    return msgspec.structs.replace(found, seconds=seconds, eta_s=eta, cost=cost)


def _whole(config: Config, place: Place) -> estimate.Estimate:
    price = config.report.price or None
    if place.measured is None or place.how is None:
        return estimate.assumed(config, place.kind, place.count, price)
    measured = msgspec.structs.replace(place.measured, text_bytes=estimate.text_bytes(config))
    made = plan.make_plan(config, measured, place.how)
    return estimate.estimate(config, made, measured, place.how, machine="this machine", price=price,
                             note=f"measured by run {place.source}")  # fmt: skip


def free_disk() -> int | None:
    """Bytes free where runs are kept; None where nobody can say."""
    folder = runs_folder()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def measurement(made: plan.Plan) -> tuple[plan.Measured, memory.How] | None:
    """What preflight measured, from the plan that it wrote; None for a plan of an earlier version."""
    known = {field: value for field, value in made.notes.items() if field in plan.Measured.__struct_fields__}
    try:
        measured = msgspec.convert(known, plan.Measured)
    except msgspec.ValidationError:
        return None
    how = memory.How(
        device=made.notes.get("device", "cpu"),
        precision=made.choices.get("precision", "fp32"),
        attention=made.choices.get("attention", "sdpa"),
        fp8=made.choices.get("fp8") == "on",
        checkpointing=made.choices.get("checkpointing") == "on",
        world=measured.world,
    )
    return measured, how


def _measured_by(run: Run) -> Place | None:
    """This machine as the preflight of `run` found it; None when it looked at another one, or was not run."""
    try:
        made, attempt = run.plan(), run.finished_attempt("preflight")
        profile = run.wishes().run.profile
    except UserError:
        return None
    found = measurement(made) if made is not None else None
    if found is None or attempt is None:
        return None
    host = next((event.host for event in run.ends("preflight", attempt)[0] if isinstance(event, ev.Started)), "")
    if host != platform.node():
        return None
    return Place(label=f"this machine, as {run.name} ({profile}) measured it", here=True, source=run.name,
                 profile=profile, measured=found[0], how=found[1])  # fmt: skip


def _gpus_here() -> list[str]:
    kinds = (gpus.named(str(one.get("name", "")), int(one.get("memory_total") or 0)) for one in Gpus().read())
    return [kind for kind in kinds if kind]


def _of_table(kind: str, count: int, here: bool = False) -> Place:
    return Place(label=f"{'this machine, ' * here}{count} × {kind}", kind=kind, count=count, here=here)
