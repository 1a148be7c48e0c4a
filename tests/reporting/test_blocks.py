"""One table looks right in every form, and nothing in it is taken for the form's own signs."""

from __future__ import annotations

import csv
import io
import re

import pytest
from rich.console import Console

from zar_ray.reporting.blocks import (
    Block,
    csv_block,
    latex_block,
    lines_block,
    markdown_block,
    print_block,
    show,
    written,
)
from zar_ray.reporting.pages import Group, Page, Section, render

HOSTILE = "a|b_*c*<d> [e] & 50 % $x$ #1 {y} ~ ^ \\ `z`"
BLOCK = Block(
    "A title",
    ("method", "what", "top-1 %"),
    [("zar", HOSTILE, "41.7 ± 1.0"), ("", "[after", "9.0"), ("tpt", "", "10.0")],
    ["A note of 95 %."],
    words=2,
)


def terminal(block: Block, width: int = 80) -> str:
    stream = io.StringIO()
    print_block(block, Console(file=stream, width=width))
    return stream.getvalue()


def test_a_terminal_shows_all_cells_and_numbers_on_the_right():
    text = terminal(BLOCK)
    assert text.index("A title") < text.index("method") < text.index("A note")
    assert HOSTILE in text
    ends = [line.rstrip() for line in text.splitlines() if re.search(r"\d\.\d$", line.rstrip())]
    assert len({len(line) for line in ends}) == 1
    assert len(ends) == 3


def test_rows_that_belong_together_are_set_off_by_gaps_and_single_ones_are_not():
    lines = terminal(Block(None, ("a", "b"), [("x", "1"), ("y", "2"), ("", "3"), ("z", "4"), ("w", "5")])).splitlines()
    assert [line.strip() for line in lines[2:]] == ["x  1", "", "y  2", "3", "", "z  4", "w  5"]


def test_the_width_is_what_a_terminal_needs():
    table = terminal(BLOCK, 200).splitlines()[2:]
    assert max(len(line.rstrip()) for line in table[:-1]) <= BLOCK.width
    assert HOSTILE in terminal(BLOCK, BLOCK.width + 1)


def test_markdown_escapes_and_aligns():
    lines = markdown_block(BLOCK)
    assert lines[0] == "**A title**"
    assert lines[3] == "|---|---|---:|"
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in lines[2:7])
    assert r"a\|b\_\*c\*\<d> \[e]" in lines[4]


def test_a_cell_or_a_note_of_markdown_is_one_line():
    block = Block("a\n# b", ("c\nd",), [("e\r\n| f ~g~",)], ["h\n\ni"])
    assert markdown_block(block)[:5] == ["**a # b**", "", "| c d |", "|---|", r"| e \| f \~g\~ |"]
    assert "h i  " in markdown_block(block)


def test_csv_is_read_back_as_it_was():
    assert list(csv.reader(io.StringIO(csv_block(BLOCK)))) == [list(BLOCK.columns), *map(list, BLOCK.rows)]


def test_latex_escapes_every_sign_of_its_own():
    text = latex_block(BLOCK)
    body = text[text.index(r"\toprule") :]
    for sign in "&%$#_{}":
        assert rf"\{sign}" in body
    assert len([line for line in body.splitlines() if len(re.findall(r"(?<!\\)&", line)) == 2]) == 4
    assert r"\begin{tabular}{llS[table-format=2.1(2), separate-uncertainty]}" in text
    assert r"& 41.7 \pm 1.0 \\" in text
    assert "% A note of 95 %." in text


def test_a_page_shows_title_cells_and_notes_as_text():
    section = Section("one", (BLOCK,))
    page = render(Page("t", "s", None, (), (), (Group("g", (section,)),)))
    assert "<p>A title</p>" in page
    assert "a|b_*c*&lt;d&gt; [e] &amp; 50 %" in page
    assert '<td class="n">9.0</td>' in page
    assert '<p class="weak">A note of 95 %.</p>' in page


@pytest.mark.parametrize("form", ["markdown", "csv", "latex"])
def test_forms_for_files_are_printed_without_colours_or_breaks(form):
    stream = io.StringIO()
    show([BLOCK, BLOCK], form, Console(file=stream, width=20, force_terminal=True, color_system="truecolor"))
    assert stream.getvalue() == written([BLOCK, BLOCK], form)


@pytest.mark.parametrize(
    "text",
    [
        '=HYPERLINK("http://x.example","y")',
        *("=1+1", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\n=1", " =1", "＝1", "＋1", "＠x"),
        *("-name", "+", "-1.5.2", "- 5", "-1 [-2, 3]", "+-1"),
    ],
)
def test_no_cell_of_a_csv_is_a_formula_to_a_spreadsheet(text):
    block = Block(None, ("class", text), [(text, "1"), ("b", text)])
    header, *rows = csv.reader(io.StringIO(csv_block(block), newline=""))
    assert header == ["class", f"'{text}"]
    assert rows == [[f"'{text}", "1"], ["b", f"'{text}"]]


@pytest.mark.parametrize(
    "text", ["-0.5", "+0.5", "-1e-05", "-12", "+3.", "-.5", "-12.5%", "-inf", "-", "", "a=b", "'x", "1-2", "a@b"]
)
def test_numbers_and_other_texts_of_a_csv_stay_as_they_are(text):
    assert csv_block(Block(None, ("a", "b"), [(text, "x")])).splitlines()[1] == f"{text},x"


def test_a_carriage_return_begins_no_row():
    block = Block(None, ("a",), [("x\r=1+1",), ("\r\n=1",)])
    assert csv_block(block) == 'a\n"x\n=1+1"\n"\'\n=1"\n'


def test_floats_of_lines_for_programs_stay_numbers():
    assert csv_block(lines_block([{"change": -0.5, "class": "=a"}])) == "change,class\n-0.5,'=a\n"
