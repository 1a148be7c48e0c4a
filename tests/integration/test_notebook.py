"""The notebook in docs/ runs from three files to a comparison plot, here on files and a model of our own."""

from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow


def test_the_quickstart_goes_from_three_files_to_a_comparison_plot(repository, tmp_path, video_folder, tiny_checkpoint):
    notebook = nbformat.read(repository / "docs" / "notebooks" / "quickstart.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells)
    (parameters,) = (cell for cell in cells if "parameters" in cell.metadata.get("tags", ()))
    clips = {str(folder / f"{number}.mp4"): folder.name for number, folder in enumerate(sorted(video_folder.iterdir()))}
    assert len(clips) == 3
    options = {"views": {"frames": 3, "eval_frames": 3}, "address": "local", "mlflow": False, "num_workers": [1]}
    parameters.source = f"clips, weights, options = {clips!r}, {str(tiny_checkpoint)!r}, {options!r}"
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown = [next((one for one in cell.outputs if "data" in one), None) for cell in cells]
    (plot,) = (one["data"]["image/svg+xml"] for one in shown if one is not None and "image/svg+xml" in one["data"])
    assert "95 % interval" in plot
    assert (tmp_path / "comparison.pdf").read_bytes().startswith(b"%PDF")
    assert r"\cite{liang2025zar}" in cells[-1].outputs[0]["text"]
    assert (tmp_path / "runs").is_dir()
