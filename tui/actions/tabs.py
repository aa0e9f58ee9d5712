"""The tabs, in the order of their number keys."""

from __future__ import annotations

from tui.actions.row import Tab

TABS: tuple[Tab, ...] = (
    Tab("runs", "Runs", "Runs", "Every run on this machine: how it stands, and what can be done with it."),
    Tab("stage", "Pipeline", "Pipe", "What the selected stage is for, how it stands, and why."),
    Tab("train", "Train", "Train", "Live curves of the selected training stage."),
    Tab("machine", "Machine", "Mach", "Processor, memory, disk, network and GPUs."),
    Tab("log", "Log", "Log", "What the selected stage printed; follows the end until you scroll away."),
    Tab("doctor", "Doctor", "Doc", "What was checked on this machine, what was found, and how to mend it."),
    Tab("report", "Report", "Rep", "The report that the run wrote, and its manifest."),
    Tab("compare", "Compare", "Comp", "The same prompt and seed to two models, side by side."),
    Tab("chat", "Chat", "Chat", "Talk to what the run made."),
)
TAB_NAMES = tuple(tab.name for tab in TABS)
