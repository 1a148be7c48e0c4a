"""Tables as LaTeX, read back by a parser: all cells as they were, numbers in siunitx's columns."""

from __future__ import annotations

import io
import re

import pytest
from finished_runs import make_case, make_model_cost, make_record, make_summary_of, write_finished_run, write_record
from hypothesis import given
from hypothesis import strategies as st
from pylatexenc.latex2text import LatexNodes2Text, MacroTextSpec, get_default_latex_context_db
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexWalker
from rich.console import Console

from zar_ray.reporting.blocks import Block, written
from zar_ray.reporting.comparison import compare_runs
from zar_ray.reporting.comparison_views import report_comparison
from zar_ray.reporting.latex import latex_block, latex_text
from zar_ray.reporting.published.view import report_table
from zar_ray.reporting.study_tables import study_blocks
from zar_ray.results.record import ProtocolAverage
from zar_ray.results.study_record import FinishedStudy
from zar_ray.storage import Storage
from zar_ray.study.options import EvalConfig

# What pylatexenc does not know, or takes for a letter.
KNOWN = get_default_latex_context_db()
SIGNS = {"textbar": "|", "textasciicircum": "^", "textasciigrave": "`", "textless": "<", "textgreater": ">"}
SIGNS |= {"dagger": "†", "ddagger": "‡"}
KNOWN.add_context_category("signs", macros=[MacroTextSpec(*one) for one in SIGNS.items()], prepend=True)
AS_TEXT = LatexNodes2Text(math_mode="text", latex_context=KNOWN)

SPECIAL = "_&%#~^\\{}$[]<>|`±×→≤-\n\tüŁ中"


def read(text: str) -> list[tuple[str, list[list[str]]]]:
    """Each table's columns and cells as a reader sees them; what cannot be parsed is an error."""
    nodes, _, _ = LatexWalker(text, tolerant_parsing=False).get_latex_nodes()
    tables = []
    for node in nodes:
        if not isinstance(node, LatexEnvironmentNode):
            continue
        whole = node.latex_verbatim()
        head, body = re.fullmatch(r"\\begin\{tabular\}\{(.*?)\}\n(.*)\\end\{tabular\}", whole, re.DOTALL).groups()
        lines = [line for line in body.splitlines() if not re.fullmatch(r"\\\w+rule", line)]
        assert all(line.endswith(r" \\") for line in lines)
        tables.append((head, [[plain(one) for one in re.split(r"(?<!\\)&", line[:-3])] for line in lines]))
    return tables


def plain(latex: str) -> str:
    span = re.fullmatch(r"\s*\\multicolumn\{\d+\}\{(?:l|c|@.*@\{\})\}\{(.*)\}\s*", latex)
    return re.sub(r"\s*±\s*", " ± ", AS_TEXT.latex_to_text(span[1] if span else latex)).strip()


@given(st.text(st.sampled_from(SPECIAL) | st.characters(codec="utf-8", categories=["L", "N", "P"])))
def test_any_name_is_read_as_it_was(name):
    # Spaces beside formulas are the parser's; LaTeX's quotation marks are others than a keyboard's.
    shown, expected = (re.sub(r"['’“”\"\s]", "", one) for one in (AS_TEXT.latex_to_text(latex_text(name)), name))
    assert shown == expected


def test_numbers_stand_in_columns_of_their_width_and_intervals_beside_them():
    rows = [
        ("a", "1,241.75 ± 11.0", "3.5 [1.0, 4.0]", "< 0.001", "7"),
        ("b", "-9.00 ± 0.5", "reference", "0.25", ""),
    ]
    (head, cells) = read(latex_block(Block("t", ("x", "m %", "change", "p", "n"), rows, words=1)))[0]
    assert head == (
        "lS[table-format=+4.2(3), separate-uncertainty]S[table-format=1.1]@{ }lS[table-format=1.2]S[table-format=1.0]"
    )
    assert cells[0] == ["x", "m %", "change", "p", "n"]
    assert cells[1] == ["a", "1241.75 ± 11.0", "3.5", "[1.0, 4.0]", "< 0.001", "7"]
    assert cells[2] == ["b", "-9.00 ± 0.5", "reference", "0.25", ""]


def test_columns_of_words_stay_words_whatever_they_hold():
    block = Block(None, ("run", "score", "see"), [("1", "2.5", "3")], words=1, words_behind=1)
    assert read(latex_block(block))[0][0] == "lS[table-format=1.1]l"


def test_footnotes_have_daggers_and_stand_under_the_table_once():
    rows = [("a", "1.5"), ("b", "2.5"), ("c", "3.5")]
    notes = {(0, 1): ("8 frames_", "seed 1"), (1, 1): ("seed 1",), (2, 0): tuple(f"note {n}" for n in range(4))}
    text = latex_block(Block(None, ("x", "y"), rows, words=1, footnotes=notes))
    cells = [line.split(r" \\")[0] for line in text.splitlines() if line.endswith(r" \\")]
    assert cells[1:4] == [
        r"a & 1.5 {$^{\dagger,\ddagger}$}",
        r"b & 2.5 {$^{\ddagger}$}",
        r"c$^{\S,\P,\|,\dagger\dagger}$ & 3.5",
    ]
    below = [one[0] for _, table in read(text) for one in table[4:]]
    assert [one.split(" ", 1)[1] for one in below] == ["8 frames_", "seed 1", "note 0", "note 1", "note 2", "note 3"]


@pytest.mark.parametrize(("name", "told"), [("中", True), ("Łódź – “ü”", False), ("a → b", False)])
def test_letters_that_pdflatex_lacks_are_told(name, told):
    assert ("LuaLaTeX" in latex_block(Block(None, ("x",), [(name,)]))) is told


def test_tables_of_studies_and_comparisons_are_latex(tmp_path):
    hostile = {(("model", "a_b & 50 %$"), ("seed", f"{n}")): {"seed": n} for n in (4, 6)}
    hostile |= {(("model", "#~^\\{ü}"), ("seed", f"{n}")): {"seed": n} for n in (4, 6)}
    study = write_finished_run(tmp_path / "s_1", cells=hostile, videos=12)
    record = FinishedStudy.open(Storage(str(study))).record
    ((head, cells),) = read(written(study_blocks(record), "latex"))
    assert "separate-uncertainty" in head
    assert [row[0] for row in cells[1:3]] == ["a_b & 50 %$", "#~^\\{ü}"]
    assert any("±" in one for one in cells[1])
    stream = io.StringIO()
    other = write_finished_run(tmp_path / "t", videos=12, seed=5, template="{}_$")
    compared = compare_runs([str(study), str(other)], ("seed", "template"))
    report_comparison(compared, "latex", Console(file=stream))
    accuracy, *_ = (table for _, table in read(stream.getvalue()))
    assert [row[0] for row in accuracy if row[0].startswith("E")] == ["E^‡"]
    assert any(row[0].startswith("^‡ template default -> {}_$; seed 4 -> 5") for row in accuracy)


@pytest.mark.parametrize("limit", [9, 30])
def test_a_published_table_has_daggers_for_what_differs(tmp_path, limit):
    splits = ("1", "2", "3")
    cases = [make_case("zero_shot", 0.41, split=one, videos=1530, failed=0) for one in splits]
    mean = ProtocolAverage("zero_shot", "top1", "mean", 0.41, 0.003, splits)
    folder, cost = tmp_path / "run", make_model_cost()
    summary = make_summary_of(cases, folder, dataset="hmdb51", averages=(mean,), model_cost=cost)
    config = EvalConfig(dataset="hmdb51", limit=limit).model_dump(mode="json")
    write_record(folder, make_record(summary, [config]), config)
    stream = io.StringIO()
    report_table("zar-table1", str(tmp_path), "latex", Console(file=stream))
    head, cells = read(stream.getvalue())[0]
    assert cells[0] == ["row", "benchmark", "published", "measured", "points"]
    assert head.startswith("llS[table-format=2.1(2), separate-uncertainty]S[table-format=2.1(1), separate-uncertainty]")
    measured = next(row[3] for row in cells[1:] if row[3])
    assert re.match(r"41\.0 ± 0\.3 \^†", measured)
    below = [row[0] for row in cells if len(row) == 1]
    assert any(f"limit {limit} videos" in one for one in below)
    assert len(below) == len(set(below))
