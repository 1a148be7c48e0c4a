"""A report joins the run in MLflow that holds the same results, and no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from finished_runs import make_run
from logged_store import LoggedStore, send

from zar_ray.commands.report import write_run_report
from zar_ray.errors import TrackingError
from zar_ray.reporting import html_report
from zar_ray.tracking import attach_report, logged_runs

pytestmark = pytest.mark.slow


@pytest.fixture
def runs(tmp_path, empty_store) -> LoggedStore:
    """A folder of runs of a test's own, with a store beside them."""
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_store, tmp_path / "runs" / "mlflow.db")
    return LoggedStore(tmp_path / "runs")


def test_a_report_is_attached_where_the_same_results_are(runs):
    run = make_run(runs.root / "mine")
    assert attach_report(str(run), {"report.html": b"<p>"}) == ()
    sent = send(run)
    assert attach_report(str(run), {"report.html": b"<p>"}) == (sent,)
    assert attach_report(str(run), {"report.html": b"<p>again"}) == (sent,)
    assert Path(runs.client.download_artifacts(sent.run_id, "report.html")).read_bytes() == b"<p>again"
    assert attach_report(str(run), {"report.html": b"<p>"}, f"sqlite:///{runs.root}/other.db") == ()

    # The run has gone on since it was sent: what MLflow holds is not what the report is of.
    make_run(run, top1=0.6)
    assert attach_report(str(run), {"report.html": b"<p>"}) == ()


def test_the_report_of_a_copy_stays_out_of_the_original_s_run(runs, monkeypatch, capsys):
    run, copy = make_run(runs.root / "mine"), runs.root / "a copy"
    sent = send(run)
    attach_report(str(run), {"report.html": b"<p>original"})
    shutil.copytree(run, copy)
    monkeypatch.setattr(
        html_report, "write_report", lambda *_, **__: ("the report's place", {"report.html": "<p>of the copy"})
    )
    write_run_report(str(copy), attention=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"report not attached to MLflow: {copy}: is a copy of a run that was logged")
    assert f"`zar report mlflow '{copy}'`" in line
    again = send(copy)
    assert attach_report(str(copy), {"report.html": b"<p>of the copy"}) == (again,)
    kept = Path(runs.client.download_artifacts(sent.run_id, "report.html"))
    assert kept.read_bytes() == b"<p>original"


def test_a_store_that_is_gone_leaves_the_report_and_says_so(runs, monkeypatch, capsys):
    run = make_run(runs.root / "mine")
    send(run)
    (runs.root / "mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(TrackingError, match="could not attach the report"):
        attach_report(str(run), {"report.html": b"<p>"})
    monkeypatch.setattr(html_report, "write_report", lambda *_, **__: ("the report's place", {"report.html": "<p>"}))
    write_run_report(str(run), attention=False)
    said = capsys.readouterr()
    assert "not attached to MLflow" in said.err
    assert said.out == "report   the report's place\n"


def test_a_run_that_is_not_in_the_store_is_told_by_its_id(runs):
    with pytest.raises(TrackingError, match=r"could not read run nothing .*check --mlflow-uri and the run id"):
        logged_runs(runs.uri, "nothing")
