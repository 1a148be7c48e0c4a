"""The wheel is enough: conf/ travels in it, and `zar` works outside the checkout, and a job in the image's folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest
from image_steps import copy_as_the_image_does

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(repository, tmp_path_factory):
    """The wheel's content in a folder of its own; the dependencies are those of this environment.

    It is built of what deploy/Dockerfile copies, as the image's is.
    """
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_as_the_image_does(repository, tmp_path_factory.mktemp("image"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(source)], check=True, timeout=180)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True, timeout=60)
    return wheel, folder / "site", source


def run(site, where, *words):
    return subprocess.run(
        [sys.executable, *words],
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(site), "ZAR_HOME": str(where / "zar")},
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_the_wheel_holds_the_package_and_its_configuration_and_nothing_else(installed, repository):
    wheel, *_ = installed
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"zar_ray"}
    for file in (repository / "conf").rglob("*.yaml"):
        assert f"zar_ray/conf/{file.relative_to(repository / 'conf')}" in names


def test_an_evaluation_runs_outside_the_checkout(installed, video_folder, tiny_checkpoint, tmp_path):
    _, site, image = installed
    where = subprocess.run(
        [sys.executable, "-c", "import zar_ray; print(zar_ray.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(site))
    assert "no manifest at" in run(site, tmp_path, "-m", "zar_ray.commands.main", "eval", "--dataset", "k600").stderr
    done = run(
        *(
            site,
            tmp_path,
            str(image / "jobs/eval.py"),
            "--dataset",
            str(video_folder),
            "--checkpoint",
            str(tiny_checkpoint),
        ),
        *("--address", "local", "--limit", "2", "--views.frames", "2", "--method", "zar", "--no-mlflow"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs").is_dir()
    assert "top-1" in done.stdout
