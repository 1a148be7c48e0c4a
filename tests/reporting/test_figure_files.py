"""`zar report run --figures`: the page's charts as files of their own, of the kind that was asked for."""

from __future__ import annotations

import pytest
from finished_runs import write_finished_run

from zar_ray.commands.report import report_run_command
from zar_ray.reporting.figure_files import write_figures
from zar_ray.reporting.pages import Figure, Group, Page, Picture, Section

STARTS = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}


@pytest.mark.slow
@pytest.mark.parametrize("form", STARTS)
def test_figures_are_written_beside_the_page(form, tmp_path, capsys):
    run = write_finished_run(tmp_path / "run", videos=12, methods=("zar",))
    words = [str(run), "--no-attention", "--samples", "0", "--figures", form]
    assert not report_run_command([*words, "--output", str(tmp_path / "out" / "page.html")])
    files = sorted((tmp_path / "out" / "figures").iterdir())
    assert {file.suffix for file in files} == {f".{form}"}
    names = [file.stem for file in files]
    assert {"zar-accuracy-by-class", "zar-calibration", "zar-entropy", "zar-mistakes"} <= set(names)
    assert all(file.read_bytes().startswith(STARTS[form]) for file in files)
    assert not (run / "figures").exists()
    tables = str(tmp_path / "tables.tex")
    assert report_run_command([str(run), "--figures", form, "--output", tables]) == 2
    assert "goes with a page" in capsys.readouterr().err


def test_each_has_a_name_of_its_own_that_a_file_can_have(tmp_path):
    def group(title, *contents):
        figures = [Figure(Picture("", "", drawn=lambda form, content=one: content), "") for one in contents]
        return Group(title, [Section("part", figures)])

    groups = [group("a", b"1", b"2"), group("a", b"3"), group("a part-2 ", b"4"), group("\u8df3" * 300, b"5")]
    write_figures(Page("", "", None, (), (), groups), str(tmp_path / "page.html"), "svg")
    files = list((tmp_path / "figures").iterdir())
    assert sorted(file.read_bytes() for file in files) == [b"1", b"2", b"3", b"4", b"5"]
    assert {"a-part.svg", "a-part-2.svg", "a-part-3.svg"} <= {file.name for file in files}
