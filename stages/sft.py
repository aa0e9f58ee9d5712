"""SFT: learn to answer; only the assistant's words (and its tool calls) count in the loss."""

from __future__ import annotations

from picollm.run.stage import Outcome, StageContext, main
from picollm.train.chat_stage import train_on_conversations


def work(ctx: StageContext) -> Outcome:
    return train_on_conversations(ctx, parent="midtrain", all_tokens=False)


if __name__ == "__main__":
    main("sft", work)
