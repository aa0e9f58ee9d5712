"""Multiple choice as every task writes it: options under letters, answered with one letter.

    user       What gas do plants take in?
               A: oxygen
               B: carbon dioxide
               C: helium
               Answer with one letter.
    assistant  B

Each letter stands at the start of a line, so that it is the same token there and in the answer; the evaluation
compares the logits of the letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

from picollm.tasks.base import Example, ask


def multiple_choice(question: str, options: Sequence[str], place: int, *, key: str, topic: str = "") -> Example:
    """The example whose right option is `options[place]`."""
    lines = [f"{letter}: {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    text = "\n".join([question, *lines, "Answer with one letter."])
    letter = ascii_uppercase[place]
    return Example(
        messages=ask(text, letter), answer=letter, choices=list(options), letter=letter, key=key, topic=topic
    )


def says_the_letter(example: Example, answer_text: str) -> bool:
    """The first letter of an option that stands alone in the text is the right one."""
    letters = ascii_uppercase[: len(example.choices or [])]
    for word in answer_text.replace(":", " ").replace(".", " ").split():
        if len(word) == 1 and word in letters:
            return word == example.letter
    return False
