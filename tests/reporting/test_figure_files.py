"""`zar report run --figures`: the page's charts as files of their own, of the kind that was asked for."""

from __future__ import annotations

import pytest
from finished_runs import write_finished_run

from zar_ray.commands.report import report_run_command

STARTS = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}


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
