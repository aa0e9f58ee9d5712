"""SmolTalk: conversations on everything, written by a larger model, to learn how an assistant talks.

    user       Hi there
    assistant  Hello! How can I help you today?
    user       I'm looking for a good book …
    assistant  …

`HuggingFaceTB/smol-smoltalk` (Allal et al., arXiv 2502.02737), column `messages` of {role, content}; some begin with
a system message. 460,341 training conversations in four files of 230 MB, 24,229 held-out ones. There is no right
answer, so it is learnt from, read for a validation loss, and never asked.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from picollm.data.hub import Repo
from picollm.run.errors import UserError
from picollm.tasks.base import Example, Split
from picollm.tasks.hub_rows import HubSplit
from picollm.tasks.hub_task import HubTask, HubTaskSettings
from picollm.tasks.rows import checked_messages
from picollm.text.chat import text_of

REPO = Repo(
    repo="HuggingFaceTB/smol-smoltalk",
    licence="Apache 2.0",
    about="SmolTalk for small models (Allal et al., arXiv 2502.02737)",
)


class SmolTalkSettings(HubTaskSettings, frozen=True, kw_only=True):
    """`files`: how many of the four training files to use; 0: all."""

    files: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.files < 0:
            raise ValueError("files must be 0 or more")


class SmolTalk(HubTask):
    name = "smoltalk"
    max_new_tokens = 256
    judged = False
    published: ClassVar[dict[Split, HubSplit]] = {
        "train": HubSplit(REPO, "data/train-*.parquet", ("messages",)),
        "heldout": HubSplit(REPO, "data/test-*.parquet", ("messages",)),
    }
    Settings = SmolTalkSettings
    settings: SmolTalkSettings

    def splits(self) -> dict[Split, HubSplit]:
        train = msgspec.structs.replace(self.published["train"], most=self.settings.files)
        return {**self.published, "train": train}

    def read(self, row: dict[str, Any], split: Split) -> Example:
        messages = checked_messages(row["messages"])
        return Example(messages=messages, answer=text_of(messages[-1]["content"]))

    def unavailable(self) -> str:
        return "free conversation has no right answers"

    def score(self, example: Example, answer_text: str) -> bool:
        raise UserError("smoltalk is free conversation and has no right answers; choose a task that scores answers")
