"""docs/extending.md: a method of a package that is installed beside zar-ray is one like its own."""

from __future__ import annotations

import json
import tomllib

import pytest
from outside_package import REPOSITORY, blocks_of, install_package, run_with

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The folder that the page's package is installed in."""
    (code,) = [code for code in blocks_of("extending.md") if 'METHOD = Method(\n    "view_mean"' in code]
    (described,) = blocks_of("extending.md", "toml")[:1]
    project = tomllib.loads(described)["project"]
    assert len(code.splitlines()) < 60
    folder = tmp_path_factory.mktemp("outside") / "packages"
    return install_package(folder, project["name"], {"view_mean": code}, project["entry-points"])


def test_the_command_lists_its_options(package):
    shown = run_with([package], "-m", "zar_ray.commands.main", "eval", "--help-all").stdout
    assert "--view-mean.keep" in shown
    assert "--view-mean.mean-of" in shown
    assert "The mean of the confident views" in shown


def test_cases_the_adapter_and_the_service_know_it(package):
    checks = REPOSITORY / "tests" / "serving" / "checks_of_view_mean.py"
    ran = run_with([package], "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks), check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "5 passed" in ran.stdout


def test_a_sweep_varies_its_option_and_the_report_names_it(package, video_folder, tiny_checkpoint, tmp_path):
    sweep = tmp_path / "keep.yaml"
    sweep.write_text("title: Share of views\ngrid: {view_mean.keep: [0.8, 0.2]}\n")
    command = ["-m", "zar_ray.commands.main", "ablate", "--dataset", str(video_folder), "--limit", "4"]
    command += ["--checkpoint", str(tiny_checkpoint), "--method", "view_mean", "--sweep", str(sweep), "--name", "keep"]
    command += ["--views.frames", "2", "--views.eval-frames", "2", "--view-mean.mean-of", "logits"]
    command += ["--output", str(tmp_path / "runs"), "--no-mlflow", "--address", "local"]
    run_with([package], *command)
    content = json.loads((tmp_path / "runs" / "keep" / "run.json").read_text())
    assert content["config"]["view_mean"] == {"keep": 0.8, "mean_of": "logits"}
    cells = content["study"]["cells"]
    assert [cell["varied"] for cell in cells] == [{}, {"view_mean.keep": 0.2}]
    assert len({case["case_id"] for cell in cells for case in cell["summary"]["cases"]}) == 2
    run_with([package], *command[:2], "report", "run", str(tmp_path / "runs" / "keep"), "--no-attention")
    page = (tmp_path / "runs" / "keep" / "report.html").read_text()
    for words in ("view_mean", "keep 0.2", "mean_of: logits"):
        assert words in page


def test_a_package_that_is_broken_is_named_in_one_line(tmp_path):
    folder = install_package(
        tmp_path / "packages",
        "broken-method",
        {"broken_method": "import nowhere_to_be_found\n"},
        {"zar_ray.methods": {"broken": "broken_method:METHOD"}},
    )
    ran = run_with([folder], str(REPOSITORY / "jobs" / "eval.py"), "--dataset", "demo", "--dry-run", check=False)
    assert ran.returncode == 2
    assert ran.stderr == (
        'zar: package broken-method: its method "broken" cannot be loaded (ModuleNotFoundError: No module named'
        " 'nowhere_to_be_found'); mend or uninstall it\n"
    )
