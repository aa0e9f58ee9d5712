"""Styles as a terminal has them: what an SGR sequence sets, and the shortest one from one style to another."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple


class Style(NamedTuple):
    """What a terminal draws with: colour and ground as SGR parameters ("" the default), and other attributes."""

    colour: str = ""
    ground: str = ""
    others: frozenset[str] = frozenset()


PLAIN = Style()


@lru_cache(2048)
def after(style: Style, parameters: str) -> Style:
    """The style that SGR `parameters` lead to."""
    colour, ground, others = style
    codes = iter(parameters.split(";"))
    for code in codes:
        number = int(code or 0)
        if number == 0:
            colour, ground, others = PLAIN
        elif number in (38, 48):
            kind = next(codes, "")
            rest = [next(codes, "") for _ in range(3 if kind == "2" else 1)]
            whole = ";".join([code, kind, *rest])
            colour, ground = (whole, ground) if number == 38 else (colour, whole)
        elif 30 <= number <= 37 or 90 <= number <= 97:
            colour = code
        elif 40 <= number <= 47 or 100 <= number <= 107:
            ground = code
        elif number in (39, 49):
            colour, ground = ("", ground) if number == 39 else (colour, "")
        elif number == 22:
            others -= {"1", "2"}
        elif 23 <= number <= 29:
            others -= {str(number - 20)}
        else:
            others |= {code}
    return Style(colour, ground, others)


@lru_cache(2048)
def change(now: Style | None, wanted: Style) -> str:
    """The shortest sequence from one style to another; from None, when nobody knows what the terminal draws with."""
    if now == wanted:
        return ""
    if wanted == PLAIN:
        return "\x1b[0m"
    if now is None or not now.others <= wanted.others:
        return f"\x1b[{';'.join(['0', *_full(wanted)])}m"
    parts = sorted(wanted.others - now.others)
    if now.colour != wanted.colour:
        parts.append(wanted.colour or "39")
    if now.ground != wanted.ground:
        parts.append(wanted.ground or "49")
    return f"\x1b[{';'.join(parts)}m"


def _full(style: Style) -> list[str]:
    return [*sorted(style.others), *filter(None, (style.colour, style.ground))]
