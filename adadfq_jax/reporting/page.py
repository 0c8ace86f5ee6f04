"""HTML of a page that loads no other file: its sections, figures and tables."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from adadfq_jax.reporting.drawing import Drawing
from adadfq_jax.reporting.findings import GOOD, NOTE, PROBLEM, Finding

# Marks a page as written by this package.
_GENERATOR = '<meta name="generator" content="adadfq_jax">'

_MARKS = {PROBLEM: "Problem", NOTE: "Note", GOOD: "Good"}
# Figures and tables never widen the page: figures shrink; on a phone the rows of a table become
# blocks, or, of a long table, it scrolls inside a box.
_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; color: #1d1d1d; background: #fff;
  font: 1rem/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { max-width: 44rem; margin: .4rem 0; }
ul.findings { list-style: none; padding: 0; max-width: 60rem; }
ul.findings li { margin: .4rem 0; padding: .35rem .7rem; border: solid; border-width: 0 0 0 .3rem; }
ul.findings li.problem { border-color: #b3261e; background: #fdecea; }
ul.findings li.note { border-color: #b57b00; background: #fff6e0; }
ul.findings li.good { border-color: #2e7d32; background: #eaf5ea; }
p.verdict { max-width: 60rem; font-size: 1.15rem; font-weight: 600; padding: .6rem .8rem;
  border-left: .4rem solid; }
p.verdict.problem { border-color: #b3261e; background: #fdecea; }
p.verdict.note { border-color: #b57b00; background: #fff6e0; }
p.verdict.good { border-color: #2e7d32; background: #eaf5ea; }
.figures { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
img { display: block; max-width: 100%; height: auto; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: right;
  white-space: nowrap; overflow-wrap: normal; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 9rem;
  overflow-wrap: anywhere; }
pre { max-width: 100%; padding: .6rem; background: #f4f4f4; font-size: .85rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
/* On a phone a row is a block, each cell of it a line that begins with its column's heading. */
@media (max-width: 40rem) {
  table.stacked { width: 100%; }
  .stacked thead { display: none; }
  .stacked tr { display: block; padding: .3rem 0; border-bottom: 1px solid #ddd; }
  .stacked th, .stacked td { display: block; border: 0; padding: 0 .2rem; text-align: left;
    white-space: normal; overflow-wrap: anywhere; }
  .stacked td:first-child { font-weight: 600; }
  .stacked td:not(:first-child)::before { content: attr(data-column); color: #666; }
}
"""


def page(title: str, subtitle: str, parts: Sequence[str]) -> str:
    """Returns a whole HTML document.

    Args:
      title: heading, plain text.
      subtitle: a line under the heading, plain text.
      parts: HTML of the sections.
    """
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{_GENERATOR}\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(subtitle)}</p>\n{body}\n</body>\n</html>\n"
    )


def is_own(path: Path) -> bool:
    """Tells whether a file is a page that `page` wrote."""
    return path.is_file() and _GENERATOR.encode() in path.read_bytes()


def section(heading: str, *parts: str) -> str:
    """Returns a section: a heading of plain text, and HTML below it."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(text: str) -> str:
    """Returns a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def verdict(found: Finding) -> str:
    """Returns the sentence at the top of a page, in the colour of its level."""
    return f'<p class="verdict {found.level}">{escape(found.text)}</p>'


def findings(found: Sequence[Finding]) -> str:
    """Returns a list of findings, each with its level as a word and a colour."""
    entries = "\n".join(
        f'<li class="{finding.level}"><strong>{_MARKS[finding.level]}.</strong> '
        f"{escape(finding.text)}</li>"
        for finding in found
    )
    return f'<ul class="findings">\n{entries}\n</ul>'


def figures(drawings: Sequence[Drawing]) -> str:
    """Returns figures with their PNG files embedded, in columns where the page is wide enough."""
    shown = "\n".join(
        f'<figure id="{drawing.name}"><figcaption>{escape(drawing.title)}</figcaption>\n'
        f'<img alt="{escape(drawing.alt)}" '
        f'src="data:image/png;base64,{base64.b64encode(drawing.png).decode()}"></figure>'
        for drawing in drawings
    )
    return f'<div class="figures">\n{shown}\n</div>'


def table(
    caption: str,
    heading: Sequence[str],
    rows: Sequence[Sequence[str]],
    links: Sequence[str | None] = (),
    *,
    stacked: bool = True,
) -> str:
    """Returns a table, which on a phone becomes a list of its rows.

    Args:
      caption: plain text.
      heading: headings of the columns, plain text.
      rows: cells of each row, plain text.
      links: for each row, the address that its first cell links to, or None.
      stacked: whether it does; a long table rather scrolls sideways in a box.
    """
    lines = []
    for number, (first, *others) in enumerate(rows):
        name = escape(first)
        if links and links[number]:
            name = f'<a href="{escape(links[number])}">{name}</a>'
        cells = "".join(
            f'<td data-column="{escape(column)}: ">{escape(cell)}</td>'
            if len(heading) > 2
            else f"<td>{escape(cell)}</td>"
            for column, cell in zip(heading[1:], others, strict=True)
        )
        lines.append(f"<tr><td>{name}</td>{cells}</tr>")
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in heading)
    body = "\n".join(lines)
    kind = ' class="stacked"' if stacked else ""
    return (
        f'<div class="scroll" tabindex="0"><table{kind}><caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{names}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def code(text: str) -> str:
    """Returns preformatted text, whose long lines are wrapped."""
    return f"<pre>{escape(text)}</pre>"


def folded(summary: str, *parts: str) -> str:
    """Returns HTML that is hidden until the reader opens it; the summary is plain text."""
    inside = "\n".join(parts)
    return f"<details><summary>{escape(summary)}</summary>\n{inside}\n</details>"
