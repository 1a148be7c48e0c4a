"""What a sweep's file says, and which settings a pass makes of it."""

from __future__ import annotations

import pytest

from zar_ray.errors import ConfigError
from zar_ray.evaluation.planning import at_one_short_side, varied_options
from zar_ray.models.tokens import clip_tokenizer
from zar_ray.reporting.published.tables import load_table
from zar_ray.study.options import EvalConfig
from zar_ray.study.sweeps import known_sweeps, load_sweep, place_settings
from zar_ray.video.transforms import Preprocessing

CLIP = Preprocessing(224)
OWN = EvalConfig(output="somewhere", mlflow_uri="http://me:secret@host")
LARGE = {f"zar.{name}": [*range(10)] for name in "abcdefg"}


@pytest.fixture
def write_sweep(tmp_path):
    def write(text: str) -> str:
        file = tmp_path / "own.yaml"
        file.write_text(text)
        return str(file)

    return write


@pytest.mark.parametrize("name", known_sweeps())
def test_shipped_sweeps_are_sound(name):
    sweep = load_sweep(name)
    runs, (placed,) = place_settings([sweep], OWN)
    # Which words are a model's own is known when it is loaded: the run's own setting is one more then.
    own_words = sweep.varies == ("context",)
    assert len(set(placed.places)) == len(sweep.settings) == len(runs) - own_words
    assert (0 in placed.places) != own_words, "the default is among the settings, so that it has a label"
    for place in placed.places[1:]:
        assert set(varied_options(OWN, runs[place])) <= set(sweep.varies)


@pytest.mark.parametrize("number", [3, 4, 5])
def test_the_papers_tables_are_the_settings_of_their_published_rows(number):
    table, sweep = load_table(f"zar-table{number}"), load_sweep(f"zar-table{number}")
    assert sweep.varies == (table.varies,)
    assert [setting.label for setting in sweep.settings] == [row.label for row in table.rows]
    runs, (placed,) = place_settings([sweep], OWN)
    expected = [row.run.expected() for row in table.rows]
    runs = at_one_short_side([runs[place] for place in placed.places], CLIP)
    for name in ("views", "zar"):
        assert [run.model_dump(mode="json")[name] for run in runs] == [one[name] for one in expected]


def test_context_lengths_are_what_their_labels_say():
    for setting in load_sweep("context_length").settings:
        assert setting.label == f"L = {len(clip_tokenizer().encode(setting.options['context']))}"
    assert {len(clip_tokenizer().encode(one.options["context"])) for one in load_sweep("context_init").settings} == {4}


def test_settings_that_sweeps_share_are_one():
    runs, placed = place_settings([load_sweep(f"zar-table{n}") for n in (3, 4, 5)], OWN)
    assert len(runs) == 10 + 3 + 3
    assert [one.places.index(0) for one in placed] == [7, 0, 1]
    # how the run works is every setting's
    assert {(run.output, run.mlflow_uri) for run in runs} == {(OWN.output, OWN.mlflow_uri)}


def test_a_grid_is_every_combination(write_sweep):
    sweep = load_sweep(write_sweep("title: Grid\ngrid: {zar.lr: [0.001, 0.005], views.rates: [[1.0], [1.0, 0.5]]}\n"))
    assert [setting.label for setting in sweep.settings] == [
        "lr 0.001, rates 1",
        "lr 0.001, rates 1, 0.5",
        "lr 0.005, rates 1",
        "lr 0.005, rates 1, 0.5",
    ]
    runs, (placed,) = place_settings([sweep], OWN)
    assert placed.places == (1, 2, 3, 4)
    assert [(run.zar.lr, run.views.rates) for run in runs[1:]] == [
        (0.001, (1.0,)),
        (0.001, (1.0, 0.5)),
        (0.005, (1.0,)),
        (0.005, (1.0, 0.5)),
    ]


def test_crops_are_compared_at_one_short_side():
    runs, _ = place_settings([load_sweep("zar-table4"), load_sweep("zar-table5")], OWN)
    assert {run.views.short_side for run in at_one_short_side(runs, CLIP)} == {256}
    # nothing changes where nobody needs it, nor where the checkpoint was trained at another
    runs, _ = place_settings([load_sweep("zar-table4")], OWN)
    assert at_one_short_side(runs, CLIP) == runs
    runs, _ = place_settings([load_sweep("zar-table5")], OWN)
    assert at_one_short_side(runs, Preprocessing(224, short_side=288)) == runs
    given = OWN.model_copy(update={"views": OWN.views.model_copy(update={"short_side": 240})})
    runs, _ = place_settings([load_sweep("zar-table5")], given)
    assert {run.views.short_side for run in at_one_short_side(runs, CLIP)} == {240}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: A\n", "varies: Field required"),
        ("title: A\ngrid: {zar.lr: 3}\n", "a grid is a list of values"),
        ("title: A\ngrid: {1: [3]}\n", "a grid is a list of values by dotted option"),
        (f"title: A\ngrid: {LARGE}\n", "a grid of 10,000,000 settings is too large for one pass"),
        ("title: A\nvaries: [zar.lr]\ngrid: {zar.lr: [3]}\n", "either a grid, or settings"),
        ("title: A\ngrid: {model: [ViT-B-32]}\n", "model cannot vary within one pass"),
        ("title: A\ngrid: {zar.lr: [1, 1.0]}\n", 'two settings are called "lr 1"'),
        ("title: A\nvaries: [zar.lr]\nsettings: [{label: a, options: {zar: {steps: 2}}}]\n", "gives zar.steps, which"),
    ],
)
def test_mistakes_in_a_file_are_named(write_sweep, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_sweep(write_sweep(text))
    assert "own.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: A\ngrid: {zar.lrr: [1]}\n", "sweep own, lrr 1: zar.lrr: Extra inputs"),
        ("title: A\ngrid: {zar.lr: [-1]}\n", "sweep own, lr -1: zar.lr: Input should be greater than 0"),
    ],
)
def test_settings_that_cannot_be_are_named(write_sweep, text, message):
    with pytest.raises(ConfigError, match=message):
        place_settings([load_sweep(write_sweep(text))], OWN)


def test_different_short_sides_are_different_sweeps(write_sweep):
    runs, _ = place_settings([load_sweep(write_sweep("title: A\ngrid: {views.short_side: [224, 256]}\n"))], OWN)
    with pytest.raises(ConfigError, match="come to 224 and 256"):
        at_one_short_side(runs, CLIP)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r'--sweep confidance: .*did you mean "confidence"'):
        load_sweep("confidance")
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_sweep("nowhere.yaml")
