"""Midtrain: teach the chat format and the tasks; every real token of a conversation counts in the loss."""

from __future__ import annotations

from picollm.run.stage import Outcome, StageContext, main
from picollm.train.chat_stage import train_on_conversations


def work(ctx: StageContext) -> Outcome:
    return train_on_conversations(ctx, parent="pretrain", all_tokens=True)


if __name__ == "__main__":
    main("midtrain", work)
