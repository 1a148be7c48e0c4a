"""Tables as LaTeX for papers: rules of booktabs, and numbers in siunitx's columns, aligned at their points."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zar_ray.reporting.blocks import Block

PACKAGES = r"% needs \usepackage{booktabs} and \usepackage{siunitx}"
"""What a document must load."""

_SIGNS = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "−": "$-$",
    # Braces keep a row that begins with a bracket from being read as the length of the line break before it.
    "[": "{[}",
    "]": "{]}",
}
# Two of them would become a dash.
_HYPHENS = re.compile("-(?=-)")

_NUMBER = r"(?P<sign>[+-]?)(?P<whole>\d{1,3}(?:,\d{3})+|\d+)(?:\.(?P<decimals>\d+))?"
_PLAIN = re.compile(_NUMBER)
_WITH_STD = re.compile(rf"{_NUMBER} (?:±|\+/-) (?P<std>\d+(?:\.\d+)?)")
_WITH_INTERVAL = re.compile(rf"{_NUMBER} (?P<interval>\[[^\[\]]*\])")

_MARKS = (r"\dagger", r"\ddagger", r"\S", r"\P", r"\|")
# Of what pdfLaTeX has letters for without further packages: European ones, and marks of text.
_KNOWN = re.compile("[\x00-\u017f\u2013-\u2026]*")


def latex_text(text: str) -> str:
    """Text in which LaTeX sees no command and no paragraph."""
    plain = _HYPHENS.sub("-\0", " ".join(text.split()))
    return "".join(_SIGNS.get(character, character) for character in plain).replace("\0", "{}")


def latex_block(block: Block) -> str:
    """A table as LaTeX, its title and notes as comments above it; what its footnotes say stands under it.

    A column of numbers is one of siunitx's, ``S``; one with intervals is such a column and one for the intervals.
    """
    lines = [f"% {' '.join(str(text).split())}" for text in (block.title, *block.notes) if text]
    if not block.rows:
        return "\n".join(lines) + "\n"
    columns = [_Column(block, place) for place in range(len(block.columns))]
    marks: dict[str, str] = {}
    for text in (one for of_cell in block.footnotes.values() for one in of_cell):
        marks.setdefault(text, _mark(len(marks)))
    body = [
        " & ".join(
            column.cell(cell, ",".join(marks[one] for one in block.footnotes.get((number, place), ())))
            for place, (column, cell) in enumerate(zip(columns, row, strict=True))
        )
        for number, row in enumerate(block.rows)
    ]
    width = sum(column.width for column in columns)
    below = [
        rf"\multicolumn{{{width}}}{{@{{}}p{{\linewidth}}@{{}}}}{{\footnotesize $^{{{mark}}}$ {latex_text(text)}}} \\"
        for text, mark in marks.items()
    ]
    table = [
        rf"\begin{{tabular}}{{{''.join(column.kind for column in columns)}}}",
        r"\toprule",
        rf"{' & '.join(column.heading for column in columns)} \\",
        r"\midrule",
        *(rf"{row} \\" for row in body),
        r"\bottomrule",
        *below,
        r"\end{tabular}",
    ]
    if not _KNOWN.fullmatch(" ".join(table)):
        lines.append("% holds letters that pdfLaTeX lacks: use LuaLaTeX or XeLaTeX, with a font that has them")
    return "\n".join([*lines, PACKAGES, *table]) + "\n"


def _mark(number: int) -> str:
    """The sign of a footnote, counted from 0: five signs, then each twice, and so on."""
    return _MARKS[number % len(_MARKS)] * (1 + number // len(_MARKS))


class _Column:
    """One column of a block, which may be two of LaTeX's."""

    def __init__(self, block: Block, place: int) -> None:
        cells = [row[place] for row in block.rows]
        may = block.stands_right(place) or (block.words is None and place > 0)
        found = [match for cell in cells if may and (match := _number(cell)) is not None]
        self.numbers = bool(found)
        self.intervals = any("interval" in one.groupdict() for one in found)
        self.width = 2 if self.intervals else 1
        heading = latex_text(block.columns[place])
        self.kind, self.heading = "r" if block.stands_right(place) else "l", heading
        if self.numbers:
            self.kind = f"S[{_format(found)}]{'@{ }l' if self.intervals else ''}"
            self.heading = rf"\multicolumn{{2}}{{c}}{{{heading}}}" if self.intervals else f"{{{heading}}}"

    def cell(self, text: str, marks: str = "") -> str:
        """A cell with the marks of its footnotes."""
        mark = f"$^{{{marks}}}$" if marks else ""
        match = _number(text) if self.numbers else None
        if match is None:
            shown = f"{latex_text(text)}{mark}"
            if self.intervals:
                return rf"\multicolumn{{2}}{{l}}{{{shown}}}"
            return f"{{{shown}}}" if self.numbers and shown else shown
        number = _digits(match)
        if std := match.groupdict().get("std"):
            number += rf" \pm {std}"
        if not self.intervals:
            return f"{number} {{{mark}}}" if mark else number
        interval = match.groupdict().get("interval")
        return f"{number} & {f'${interval}$' if interval else ''}{mark}"


def _number(text: str) -> re.Match[str] | None:
    kinds = (_PLAIN, _WITH_STD, _WITH_INTERVAL)
    return next((match for kind in kinds if (match := kind.fullmatch(text)) is not None), None)


def _digits(match: re.Match[str]) -> str:
    """A number's value; siunitx would take the comma between thousands for its point."""
    decimals = match["decimals"]
    return match["sign"] + match["whole"].replace(",", "") + (f".{decimals}" if decimals else "")


def _format(found: Sequence[re.Match[str]]) -> str:
    """How much room a column's numbers need on each side of the point."""
    whole = max(len(one["whole"].replace(",", "")) for one in found)
    decimals = max(len(one["decimals"] or "") for one in found)
    sign = "+" if any(one["sign"] for one in found) else ""
    room = f"table-format={sign}{whole}.{decimals}"
    deviations = [std for one in found if (std := one.groupdict().get("std"))]
    if not deviations:
        return room
    digits = max(len(one.replace(".", "").lstrip("0")) for one in deviations)
    return f"{room}({max(1, digits)}), separate-uncertainty"
