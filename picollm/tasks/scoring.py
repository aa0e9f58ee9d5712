"""The rules by which answers are compared, stated once.

normalised match    equal after lower-casing, dropping punctuation and squeezing blanks
token overlap       F1 of the two multisets of normalised words (as in SQuAD, Rajpurkar et al. 2016, but articles
                    count: the answers here are sentences, not names)
final number        the last integer of the text, or the number after the last "####" where a task demands the mark
"""

from __future__ import annotations

import re
from collections import Counter

GOOD_OVERLAP = 0.5

_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"-?\d[\d,]*")
_MARKED = re.compile(r"####\s*\$?(-?\d[\d,]*)(\.\d+)?")


def words(text: str) -> list[str]:
    """Lower-case words and numbers, without punctuation."""
    return _WORD.findall(text.lower())


def normalise(text: str) -> str:
    """`"Return the  Item."` → `"return the item"`."""
    return " ".join(words(text))


def overlap_f1(answer: str, reference: str) -> float:
    """Harmonic mean of the share of answer words found in the reference and the reverse, 0 to 1.

    Words are counted with multiplicity. Two texts without words agree only if both are empty.
    """
    got, wanted = Counter(words(answer)), Counter(words(reference))
    common = sum((got & wanted).values())
    if not common:
        return float(not got and not wanted)
    precision, recall = common / sum(got.values()), common / sum(wanted.values())
    return 2 * precision * recall / (precision + recall)


def closeness(answer: str, reference: str) -> float:
    """1 for the same words, else their overlap (`overlap_f1`), 0 to 1: what RL maximises on free answers."""
    return 1.0 if normalise(answer) == normalise(reference) else overlap_f1(answer, reference)


def says_the_same(answer: str, reference: str) -> bool:
    """Normalised match, or a token overlap of at least 0.5."""
    return normalise(answer) == normalise(reference) or overlap_f1(answer, reference) >= GOOD_OVERLAP


def last_number(text: str) -> str | None:
    """The last integer in the text without thousands separators, or None."""
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


def marked_number(text: str) -> str | None:
    """The number after the last `####`, or None when the mark or the number is missing; `5.0` is written `5`."""
    found = _MARKED.findall(text)
    if not found:
        return None
    whole, part = found[-1]
    return whole.replace(",", "") + part.rstrip("0").rstrip(".")
