"""Markdown that shows text as it was, whatever the text is."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from picollm.run.report_blocks import Chart, Command, Said, Table, Text, markdown, visible

READER = MarkdownIt("commonmark").enable("table").enable("strikethrough")
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(
    "*_`#>|<[]()!~-+1.= \\&;\n\tab", max_size=60
)
PLAIN = {
    "paragraph",
    "text",
    "softbreak",
    "hardbreak",
    "blockquote",
    "inline",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
}


def read(text: str) -> tuple[set[str], list[str]]:
    """Kinds of element, and the text of each inline run."""
    kinds, texts = set(), []
    for token in READER.parse(text):
        kinds.add(token.type.removesuffix("_open").removesuffix("_close"))
        if token.type == "inline":
            kinds |= {child.type.removesuffix("_open").removesuffix("_close") for child in token.children or []}
            texts.append(" ".join((child.content or " ") for child in token.children or []))
    return kinds, texts


def squeezed(text: str) -> str:
    return "".join(text.replace("\ufffd", "").split())


def no_controls(text: str) -> str:
    return squeezed("".join(char for char in text if (char >= " " and char != "\x7f") or char == "\n"))


@given(ANY)
@example("\x1f")
@example("a __b__ c")
def test_an_answer_is_shown_as_it_is(text: str) -> None:
    kinds, texts = read(markdown([Said("who", text)]))
    assert kinds <= PLAIN | {"strong"}
    shown = squeezed("".join(texts))
    assert shown == "who" + (no_controls(text) if visible(text).strip() else "(nothing)")


@given(ANY)
def test_so_is_a_paragraph_and_a_cell(text: str) -> None:
    kinds, texts = read(markdown([Text("x" + text)]))
    assert kinds <= PLAIN and squeezed("".join(texts)) == "x" + no_controls(text)
    kinds, texts = read(markdown([Table(["head", "b"], [["x" + text, "y"]])]))
    assert kinds <= PLAIN and squeezed(texts[2]) == "x" + no_controls(text) and len(texts) == 4


def test_names_between_underscores_are_no_emphasis() -> None:
    for text in ("def __init__(self):", "a__b", "___", "_private and snake_case", "**kw __all__ *args"):
        kinds, texts = read(markdown([Said("who", text), Table(["head"], [["x" + text]])]))
        assert kinds <= PLAIN | {"strong"} and squeezed(texts[1]) == squeezed(text)
        assert squeezed(texts[3]) == "x" + squeezed(text)


def test_lines_stay_lines_and_indents_stay() -> None:
    text = markdown([Said("sft", "one\n  two\n\n1. three", "3 words")])
    assert text == "**sft** (3 words)\n\n> one\\\n> \u00a0\u00a0two\n>\n> 1\\. three\n"


def test_a_command_and_a_chart_are_fenced() -> None:
    text = markdown([Command("picollm run"), Chart("loss", [1, 2, 3], [3.0, 2.0, 1.0], "(falls)")])
    assert text.startswith("```sh\npicollm run\n```\n\n**loss** (falls)\n\n```text\n3 ┤")
