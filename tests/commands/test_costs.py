"""`zar cost`: models side by side, from their shapes."""

import shutil
import warnings

import pytest
from safetensors.torch import save_file

from zar_ray.commands.cost import COLUMNS, cost_row
from zar_ray.commands.main import main
from zar_ray.data.classes import class_list
from zar_ray.models.checkpoints import read_checkpoint
from zar_ray.models.systems.registry import known_systems
from zar_ray.study.options import EvalConfig

pytestmark = pytest.mark.slow

NAMES = ("cooking an egg", "playing chess")


@pytest.fixture(scope="module")
def rows():
    """All models as the documented table has them."""
    models, names = ("ViT-B-16-quickgelu", *known_systems()), class_list("kinetics400")
    return {model: cost_row(model, names, EvalConfig(), length=300) for model in models}


def test_what_a_published_recipe_trains_is_counted(rows):
    # Ahmad et al., 2023: 5.2 M for ViT-B/16.
    assert (rows["ezclip"].recipe, rows["ezclip"].trained) == ("ezclip", 5_204_736)
    plain = rows["ViT-B-16-quickgelu"]
    assert (plain.recipe, plain.trained) == ("k400_zar", plain.cost.parameters - 49408 * 512)


def test_a_model_is_known_by_its_towers_and_not_by_its_name(rows, tiny_checkpoint, tmp_path):
    architectures = {model: rows[model].cost.architecture for model in ("ViT-B-16-quickgelu", "ezclip", "a5")}
    # A system that adds something is no plain CLIP.
    assert architectures == {"ViT-B-16-quickgelu": "ViT-B-16-quickgelu", "ezclip": None, "a5": None}
    assert rows["ViT-B-16-quickgelu"].cost.input_size == 224
    called = shutil.copy(tiny_checkpoint, tmp_path / "ViT-B-16.safetensors")
    tiny = cost_row(str(called), NAMES, EvalConfig(), length=50).cost
    assert (tiny.architecture, tiny.input_size) == (None, 32)


def test_the_cost_of_tuning_stands_beside_a_views(rows):
    assert rows["ViT-B-16-quickgelu"].cost.tuning_gflops["zar"] > 0
    assert rows["a5"].cost.tuning_gflops == {}, "a5 has no context to tune"
    assert rows["ViT-B-16-quickgelu"].images > 16


def test_a_model_of_whole_views_encodes_them_as_wholes(rows):
    assert rows["ezclip"].cost.view_frames == 8
    assert rows["ezclip"].images % 8 == 0


def test_a_checkpoint_file_stands_for_its_model(tiny_checkpoint):
    row = cost_row(str(tiny_checkpoint), NAMES, EvalConfig(), length=50)
    assert row.cost.parameters > row.trained > 0


def test_settings_are_the_sizes_of_what_a_system_adds(rows):
    wide = cost_row("ezclip", NAMES, EvalConfig(settings=("frames=12", "reduction=8")), length=95)
    assert wide.cost.view_frames == 12
    assert wide.cost.parameters < rows["ezclip"].cost.parameters, "smaller adapters"
    assert wide.trained < rows["ezclip"].trained


def test_settings_say_what_a_files_tensors_do_not(tmp_path, tiny_checkpoint):
    tensors, file = read_checkpoint(tiny_checkpoint).tensors, tmp_path / "bare.safetensors"
    save_file(tensors, file)
    with pytest.warns(UserWarning, match="no tensor tells"):
        assumed = cost_row(str(file), NAMES, EvalConfig(), length=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        words = ("quick_gelu=false", "vision_heads=2", "text_heads=2")
        said = cost_row(str(file), NAMES, EvalConfig(settings=words), length=50)
    assert said.cost.parameters == assumed.cost.parameters


def test_the_documented_table_is_what_is_counted(rows, repository):
    lines = (repository / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
    (head,) = [number for number, line in enumerate(lines) if line == f"| {' | '.join(COLUMNS)} |"]
    table = [tuple(line.strip("| ").split(" | ")) for line in lines[head + 2 : lines.index("", head)]]
    assert table == [row.shown() for row in rows.values()]


def test_the_command_prints_a_row_a_model(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["cost", "ViT-B-16-quickgelu", "a5", "--class-names", "a,b", "--steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "281" in said
    assert "refused" in said
    assert "--steps 2" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cost", "--frames", "0"], "zar cost: --frames, --length and --steps are 1 or more"),
        (["cost", "ezclap"], 'no model is called "ezclap"'),
        (["cost", "a5", "--settings", "prefx=4"], "--settings prefx=4: a5 has no such setting; did you mean"),
        (["cost", "RN50", "--settings", "frames=4"], "--settings frames=4: RN50 has no such setting"),
    ],
)
def test_a_mistake_is_one_line(capsys, words, message):
    assert main(words) != 0
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
