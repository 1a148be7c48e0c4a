"""MLflow's own page on a store that runs were logged to: names, nesting, description and comparison are there."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

import pytest
from finished_runs import make_case, make_record, make_run, make_summary_of, write_record
from mlflow import MlflowClient

from zar_ray.tracking import log_run_folder, runs_page

pytestmark = pytest.mark.slow

START_SECONDS = 180
# MLflow's page loads megabytes of scripts, on machines that do other things besides.
PATIENCE = 90_000


@dataclass(frozen=True)
class Dashboard:
    """A running MLflow, and what is in it."""

    url: str
    address: str
    experiment: str
    parent: str
    children: dict[str, str]
    cells: dict[str, str]

    def runs(self) -> str:
        return self.address.partition("&viewStateShareKey=")[0]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture(scope="module")
def dashboard(browser_path, tmp_path_factory):
    from zar_ray.reporting.study_tables import study_markdown

    root = tmp_path_factory.mktemp("dashboard")
    run = make_run(root / "runs" / "an-evaluation")
    for kind in ("per_class.csv", "confusion.png"):
        (run / f"zero_shot_{kind}").write_bytes((run / f"zar_{kind}").read_bytes())
    receipt = log_run_folder(str(run), describe=study_markdown)
    settings = {
        (("model", model), ("setting", f"confidence {confidence}")): make_summary_of([make_case("zar", confidence)])
        for model in ("clip", "vifi")
        for confidence in (0.25, 0.5)
    }
    configs = [{"zar": {"confidence": 0.25}}, {"zar": {"confidence": 0.5}}]
    study = write_record(root / "runs" / "a-study", make_record(settings, configs))
    sent = log_run_folder(str(study), describe=study_markdown)
    client = MlflowClient(receipt.uri)
    experiment = client.get_experiment_by_name("zar-ray").experiment_id

    def below(parent: str) -> dict[str, str]:
        runs = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'")
        return {run.info.run_name: run.info.run_id for run in runs}

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", receipt.uri, "--host", "127.0.0.1"]
    with (root / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--workers", "1"],
            cwd=root,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, (root / "server.log").read_text()
            assert time.monotonic() < deadline, (root / "server.log").read_text()
            time.sleep(0.5)
        url = f"http://127.0.0.1:{port}"
        children, cells = below(receipt.run_id), below(sent.run_id)
        yield Dashboard(url, runs_page(receipt.uri, url), experiment, receipt.run_id, children, cells)
    finally:
        # With its worker processes, which have its session to themselves.
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def test_the_printed_address_opens_on_every_method_s_accuracy(watch, dashboard):
    from playwright.sync_api import expect

    page = watch(dashboard.url).page
    page.goto(dashboard.address)
    for metric in ("top1_before", "top1", "top1_change", "videos"):
        expect(page.locator(f'[role=columnheader][col-id="metrics.`{metric}`"]')).to_be_visible(timeout=PATIENCE)
    for name in (*dashboard.children, *dashboard.cells):
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible(timeout=PATIENCE)
    # The name and the numbers are in two tables beside each other.
    named = page.locator("[row-index]").filter(has_text="zero_shot · demo-tiny · demo")
    top1 = page.locator(f'[row-index="{named.first.get_attribute("row-index")}"] [col-id="metrics.`top1`"]')
    expect(top1).to_have_text("0.4", timeout=PATIENCE)


def test_the_experiment_lists_runs_with_their_methods_below(watch, dashboard):
    from playwright.sync_api import expect

    watched = watch(dashboard.url)
    page = watched.page
    page.goto(dashboard.runs())
    expect(page.get_by_text("Evaluations by zar-ray").first).to_be_visible(timeout=PATIENCE)
    name = "zero_shot + zar · demo-tiny · demo (an-evaluation)"
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=name))
    expect(row).to_be_visible(timeout=PATIENCE)
    # The columns that are there before any is chosen.
    expect(page.get_by_text(re.compile(r"^1\.\dmin$"))).to_have_count(2, timeout=PATIENCE)
    expect(page.get_by_text("zar eval").first).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("link", name="zero_shot · demo-tiny · demo", exact=True)).to_have_count(0)
    row.get_by_role("button").first.click()
    for name, run_id in dashboard.children.items():
        link = page.get_by_role("link", name=name, exact=True)
        expect(link).to_be_visible(timeout=PATIENCE)
        assert run_id in link.get_attribute("href")


def test_a_run_shows_its_result_table(watch, dashboard):
    from playwright.sync_api import expect

    page = watch(dashboard.url).page
    page.goto(f"{dashboard.url}/#/experiments/{dashboard.experiment}/runs/{dashboard.parent}")
    table = page.get_by_role("table").filter(has_text="mean class %")
    expect(table).to_be_visible(timeout=PATIENCE)
    words = " ".join(table.inner_text().split())
    assert "zero_shot" in words
    assert "change +10.0" in words


def test_methods_stand_beside_each_other_in_the_comparison(watch, dashboard):
    from playwright.sync_api import expect

    watched = watch(dashboard.url)
    page = watched.page
    chosen = json.dumps(list(dashboard.children.values()))
    page.goto(f'{dashboard.url}/#/compare-runs?runs={chosen}&experiments=["{dashboard.experiment}"]')
    expect(page.get_by_text("Comparing 2 Runs from 1 Experiment")).to_be_visible(timeout=PATIENCE)
    names = " ".join(dashboard.children)
    expect(page.get_by_role("row", name=f"Run Name: {names}")).to_be_visible(timeout=PATIENCE)
    methods = " ".join(name.partition(" · ")[0] for name in dashboard.children)
    expect(page.get_by_role("row", name=f"method {methods}").first).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("link", name="mean_class_before", exact=True)).to_be_visible(timeout=PATIENCE)
    # Its plot begins with the first number that was logged.
    chosen = page.locator("[class*=select-selection-item]").filter(has_text=re.compile("^top1$"))
    expect(chosen.first).to_be_visible(timeout=PATIENCE)
    thrown = [error for error in watched.errors if "TypeError" in error or "ReferenceError" in error]
    assert not thrown


def test_the_cells_of_a_study_stand_beside_each_other_in_the_comparison(watch, dashboard):
    from playwright.sync_api import expect

    page = watch(dashboard.url).page
    names = sorted(dashboard.cells)
    pairs = [(model, value) for model in ("clip", "vifi") for value in (0.25, 0.5)]
    assert names == [f"zar · {model} · demo · confidence {value}" for model, value in pairs]
    chosen = json.dumps([dashboard.cells[name] for name in names])
    page.goto(f'{dashboard.url}/#/compare-runs?runs={chosen}&experiments=["{dashboard.experiment}"]')
    expect(page.get_by_text("Comparing 4 Runs from 1 Experiment")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("row", name=f"Run Name: {' '.join(names)}")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("row", name="zar.confidence 0.25 0.5 0.25 0.5").first).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("link", name="accuracy", exact=True)).to_be_visible(timeout=PATIENCE)
