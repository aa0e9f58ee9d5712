"""What a run takes, as text: `picollm plan` for the machine at hand or for one from the table."""

from __future__ import annotations

from picollm.cli_follow import duration
from picollm.cli_show import plan_text, table
from picollm.run import estimate, forecast, gpus, memory
from picollm.run.config import Config
from picollm.run.errors import UserError
from picollm.run.estimate import Estimate
from picollm.run.folder import Run
from picollm.run.planned import Plan


def amount(value: float, unit: str = "") -> str:
    """1.38 B, 40.2 M, 512: a count in three digits."""
    for size, letter in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G" if unit else "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {letter}{unit}"
    return f"{value:,.0f}" + (f" {unit}" if unit else "")


def gib(value: float) -> str:
    return f"{value / memory.GIB:.1f} GiB" if value >= 0.05 * memory.GIB else f"{value / 2**20:.0f} MiB"


def takes(found: Estimate) -> str:
    """Parameters, steps, memory, disk, time and cost, one table each."""
    shape, how = found.shape, found.how
    rows = [["parameters", ""]]
    sums = {"scaling": "matrices and lm_head", "total": "all"}
    rows += [[f"  {sums.get(name, name)}", f"{count:,}"] for name, count in found.params.items() if count]
    head = f"depth {shape.depth}, dim {shape.dim}, {shape.heads} heads, {shape.vocab_size:,} ids, T {shape.seq_len}"
    steps = [["training", "steps", "rows", "tokens"]]
    for name, count in found.steps.items():
        steps.append(
            [name, f"{count:,}", f"{found.rows[name]:,}" if name in found.rows else "", amount(found.tokens[name])]
        )
    rates = [["learning rates", ""], *([f"  {name}", f"{rate:.4g}"] for name, rate in found.rates.items())]
    speed = [
        ["FLOPs", amount(found.flops), f"{found.flops_per_token:.3g} a token"],
        ["speed", f"{found.tok_s:,.0f} tok/s", found.note],
        ["text", f"{found.epochs:.2f} epochs" if found.epochs else "not looked at", ""],
    ]
    micro = f"{found.rows['device']} rows at a time, {found.micro_batches} × a step"
    kind = f"{how.precision}{', fp8' if how.fp8 else ''}, {how.attention} attention"
    kind += ", activations computed twice" if how.checkpointing else ""
    room = [[f"memory of each of {how.world}", "", micro], ["", "", kind]]
    room += [[f"  {name}", gib(count), ""] for name, count in found.memory.items() if count and name != "total"]
    of = f"of {gib(found.free)}" if found.free else ""
    room.append(["  all", gib(found.memory["total"]), of])
    disk = [["disk", ""], *([f"  {name}", gib(count)] for name, count in found.disk.items() if name != "total")]
    disk.append(["  all", gib(found.disk["total"])])
    ends = [["time", duration(found.eta_s)]]
    if found.cost is not None:
        ends.append(["cost", f"${found.cost:,.2f}"])
    parts = [(rows, (1,)), (steps, (1, 2, 3)), (rates, (1,)), (speed, ()), (room, (1,)), (disk, (1,)), (ends, (1,))]
    return "\n\n".join([head, *(table(cells, right) for cells, right in parts)])


def assumed_text(config: Config, name: str, count: int, price: float | None) -> str:
    """The plan for GPUs of the table; nothing is measured and no run is touched. Raises `UserError`."""
    found = estimate.assumed(config, name, count, price)
    stages = [["stage", "predicted"], *([name, duration(seconds)] for name, seconds in found.seconds.items())]
    title = f"plan of profile {config.run.profile} for {found.machine}, assumed, not measured"
    return "\n\n".join([title, takes(found), table(stages, right=(1,))])


def measured_text(run: Run, made: Plan, price: float | None) -> str:
    """The plan that preflight made on this machine, what it takes, and how it went so far.

    What it takes is left out where the plan is of an earlier version, which did not say.
    """
    if "machine.device_rows" not in made.values:
        return plan_text(run, made)
    found_out = forecast.measurement(made)
    if found_out is None:
        raise UserError(f"{run.dir / 'plan.json'}: its measurements are not whole; run preflight again")
    measured, how = found_out
    found = estimate.estimate(run.wishes(), made, measured, how, machine="this machine", price=price, note="measured")
    return plan_text(run, made) + "\n\n" + takes(found)


def names() -> str:
    """The GPUs of the table, for help."""
    return ", ".join(gpus.GPUS)
