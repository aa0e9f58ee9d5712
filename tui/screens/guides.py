"""What each screen shows and how to read it, in a few sentences: the first part of its help."""

from __future__ import annotations

GUIDES: dict[str, tuple[str, ...]] = {
    "runs": (
        "One line a run: its state, the stage it is at, the newest loss or bits per byte, and when something last "
        "happened. A run is a folder; what you rename, archive or delete here is that folder.",
    ),
    "stage": (
        "The selected stage in words: its idea, what a typical figure looks like, what it needs and makes, how long it "
        "takes against the plan, and its settings. What you changed from the profile is marked.",
        "A stale stage was made with settings, or from a stage, that have changed since. Nothing is made again without "
        "your word.",
    ),
    "train": (
        "Every curve that the stage measures. The thin line is what was measured, the thick one its moving average; a "
        "column of dots that reaches up is a spike of one step. X goes to the planned end while the stage runs.",
        "Values that are no numbers (NaN, infinity) are marked on the axis and said above the chart.",
    ),
    "machine": (
        "What the machine does: processor, memory, disk, network, and for each GPU load, memory, power against its "
        "limit, heat, and what slows it down. What a driver does not say is said to be unknown, never shown as zero.",
    ),
    "log": (
        "Every log of the run can be shown, of any size. Of a progress bar its last state is shown, of a long line "
        "its beginning; searching and copying go by the whole line.",
        "A click marks a line, dragging selects several.",
    ),
    "doctor": (
        "What is wrong comes first, with the way to mend it. The selected check says what it is for. Making a check "
        "again changes nothing in the run; picollm doctor does the same without the app.",
    ),
    "report": (
        "A section at a time; beside them samples, wrong answers and votes, also before the report is written. The "
        "manifest says what everything was made from.",
    ),
    "compare": (
        "The same prompt, settings and seed to two models: what differs is what training changed. A vote is kept in "
        "the run.",
    ),
    "chat": (
        "A conversation with a model of the run, kept in the run's folder. A base model continues your text; a chat "
        "model answers it.",
    ),
}  # fmt: skip
