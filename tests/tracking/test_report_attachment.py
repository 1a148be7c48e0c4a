"""A report joins the run in MLflow that holds the same results, and no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finished_folders import write_finished_run

from zar_ray.commands.main import main
from zar_ray.errors import TrackingError
from zar_ray.tracking import attach_report, log_run_folder, logged_run


def test_a_report_is_attached_where_the_same_results_are(tmp_path):
    from mlflow import MlflowClient

    folder = write_finished_run(tmp_path / "runs" / "mine", videos=6)
    assert attach_report(str(folder), "report.html", b"<p>") == ()
    sent = log_run_folder(str(folder))
    assert attach_report(str(folder), "report.html", b"<p>") == (sent,)
    assert attach_report(str(folder), "report.html", b"<p>again") == (sent,)
    client = MlflowClient(sent.uri)
    assert Path(client.download_artifacts(sent.run_id, "report.html")).read_bytes() == b"<p>again"
    assert attach_report(str(folder), "report.html", b"<p>", f"sqlite:///{tmp_path}/other.db") == ()
    assert logged_run(sent.uri)(sent.run_id).summary.name == "mine"

    # The run has gone on since it was sent: what MLflow holds is not what the report is of.
    record = json.loads((folder / "run.json").read_text())
    record["summary"]["finished"] -= 1
    (folder / "run.json").write_text(json.dumps(record))
    assert attach_report(str(folder), "report.html", b"<p>") == ()


def test_a_store_that_is_gone_leaves_the_report_and_says_so(tmp_path, capsys):
    folder = write_finished_run(tmp_path / "runs" / "mine", videos=6)
    log_run_folder(str(folder))
    (tmp_path / "runs" / "mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(TrackingError, match="could not attach the report"):
        attach_report(str(folder), "report.html", b"<p>")
    assert main(["report", "run", str(folder), "--no-attention"]) == 0
    assert "not attached to MLflow" in capsys.readouterr().err
    assert (folder / "report.html").is_file()
    with pytest.raises(TrackingError, match="check --mlflow-uri and the run id"):
        logged_run(f"sqlite:///{tmp_path}/new.db")("nothing")
