"""A report as one page that needs nothing else: no script, no font, no image from anywhere; light or dark as the
reader's system is. Whatever stands in it was escaped: a model or a data set may have written it."""

from __future__ import annotations

import re
from html import escape as _escape

from picollm.run import curves
from picollm.run.report_blocks import Block, Chart, Command, Heading, Notes, Said, Table, Text, visible

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60666e; --rule: #d9dce0; --paper: #fff; --panel: #f5f6f8;
  --curve: #0b62c4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e9; --soft: #9aa1aa; --rule: #363b42; --paper: #15181c;
  --panel: #1d2126; --curve: #6db3ff; } }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1, h2, h3 { line-height: 1.25; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--rule); }
nav { color: var(--soft); } a { color: var(--curve); }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
blockquote { margin: .3rem 0 1rem; padding: .5rem .8rem; background: var(--panel); border-left: 3px solid var(--rule);
  white-space: pre-wrap; overflow-wrap: anywhere; }
.notes { white-space: pre-wrap; } .about { color: var(--soft); font-size: .9rem; }
pre { overflow-x: auto; padding: .6rem .8rem; background: var(--panel); }
figure { margin: 1rem 0; } figcaption { color: var(--soft); font-size: .9rem; }
.curve { width: 100%; max-width: 48rem; height: auto; } .grid { stroke: var(--rule); }
.tick { fill: var(--soft); font-size: 12px; } .line { fill: none; stroke: var(--curve); stroke-width: 1.6; }
.end { fill: var(--curve); } .mark { stroke: var(--soft); stroke-dasharray: 2 4; }
""".strip()


def page(title: str, blocks: list[Block]) -> str:
    """The whole document."""
    headings = [block for block in blocks if isinstance(block, Heading) and block.level == 2]
    links = " · ".join(f'<a href="#{_anchor(block.text)}">{escape(block.text)}</a>' for block in headings)
    parts = []
    for block in blocks:
        parts.append(_html(block))
        if isinstance(block, Heading) and block.level == 1:
            parts.append(f"<nav>{links}</nav>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def escape(text: str) -> str:
    return _escape(visible(text))


def _html(block: Block) -> str:
    match block:
        case Heading():
            anchor = f' id="{_anchor(block.text)}"' if block.level == 2 else ""  # others may be anybody's words
            return f"<h{block.level}{anchor}>{escape(block.text)}</h{block.level}>"
        case Text():
            return f"<p>{escape(block.text)}</p>"
        case Notes():
            return f'<div class="notes">{escape(block.text.strip())}</div>'
        case Table():
            head = "".join(f"<th>{escape(cell)}</th>" for cell in block.head)
            rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in block.rows)
            return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        case Said():
            about = f' <span class="about">{escape(block.about)}</span>' if block.about else ""
            text = escape(block.text.strip("\n") or "(nothing)")
            return f"<div><b>{escape(block.who)}</b>{about}<blockquote>{text}</blockquote></div>"
        case Command():
            return f"<pre>{escape(block.text)}</pre>"
        case Chart():
            drawn = curves.svg(block.title, block.steps, block.values, block.note, block.marks)
            said = [f"┆ {step:,}: {text}" for step, text in block.marks]
            caption = "<br>".join(escape(text) for text in [f"{block.title} {block.note}".strip(), *said])
            return f"<figure><figcaption>{caption}</figcaption>{drawn}</figure>"


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
