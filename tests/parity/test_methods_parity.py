"""Test-time methods on the numbers that their official code gave (tests/golden)."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zar_ray.errors import ConfigError
from zar_ray.parity.fixture import read_fixture
from zar_ray.parity.formulas import evaluate_formula
from zar_ray.parity.recipe import recipe_tensor
from zar_ray.parity.run import SYSTEMS, check_fixtures

GOLDEN = Path(__file__).parent.parent / "golden"
FACTS = {
    system: facts
    for file in sorted(GOLDEN.glob("methods*.json"))
    for system, facts in json.loads(file.read_text()).items()
}


@pytest.fixture(scope="module")
def vectors():
    found = {}
    for path in GOLDEN.glob("methods*.npz"):
        with np.load(path) as file:
            found |= dict(file)
    return found


@pytest.fixture
def make(tmp_path_factory, write_fixture, vectors):
    def write(system, **changed):
        own = {name.partition("/")[2]: value for name, value in vectors.items() if name.startswith(f"{system}/")}
        facts = {name: value for name, value in FACTS[system].items() if name not in ("source", "tolerances")}
        arrays = {name: {"what": "…", "tolerance": allowed} for name, allowed in FACTS[system]["tolerances"].items()}
        description = {"system": system, **facts, "arrays": arrays}
        return write_fixture(tmp_path_factory.mktemp("one") / system, description, own | changed)

    return write


@pytest.mark.slow
@pytest.mark.parametrize("system", FACTS)
def test_every_array_is_within_its_tolerance(make, system):
    checks = check_fixtures(make(system))
    assert [check.name for check in checks if not check.ok] == []
    compared = [one for one in FACTS[system]["tolerances"].values() if one is not None]
    assert len(checks) == len(compared) + len(FACTS[system]["digest"])


@pytest.mark.slow
@pytest.mark.parametrize("system", FACTS)
def test_each_array_that_is_off_is_found(make, vectors, system):
    wrong = {}
    for name, allowed in FACTS[system]["tolerances"].items():
        if allowed is not None:
            value = vectors[f"{system}/{name}"]
            wrong[name] = value + np.asarray(max(3 * allowed, 1 if value.dtype.kind == "i" else 0), value.dtype)
    # All at once: a value made of the fixture's own would not be found.
    missed = {check.name for check in check_fixtures(make(system, **wrong)) if not check.ok}
    assert missed == {f"{system}/{name}" for name in wrong}


def test_formulas_are_arithmetic_of_the_recipes_tensors():
    made = evaluate_formula("golden_tensor('a', (V, 2), seed)[1] + float32(0.5) * 3", {"V": 2, "seed": 9}, "here")
    assert np.array_equal(made, recipe_tensor("a", (2, 2), 9)[1] + np.float32(0.5) * 3)


def test_formulas_take_rows_by_lists_and_by_other_inputs_that_are_drawn():
    drawn = evaluate_formula("RandomState(seed + 2).randint(0, K, size=N)", {"seed": 9, "K": 3, "N": 5}, "here")
    assert drawn.dtype == np.int64
    assert np.array_equal(drawn, np.random.RandomState(11).randint(0, 3, size=5))
    made = evaluate_formula("golden_tensor('a', (K, 2), 9)[labels][:, None]", {"K": 3, "labels": drawn}, "here")
    assert np.array_equal(made, recipe_tensor("a", (3, 2), 9)[drawn][:, None])


@pytest.mark.parametrize("formula", ["RandomState(1).bytes(9)", "seed.randint(2)", "open('x').randint(2)", "[1][1:2]"])
def test_nothing_but_integers_is_drawn(formula):
    with pytest.raises(ConfigError, match="here: its formula cannot be read"):
        evaluate_formula(formula, {"seed": 1}, "here")


@pytest.mark.parametrize(
    ("system", "place", "value"),
    [
        ("boostadapter", ("original", "positive", "alpha"), None),
        ("boostadapter", ("original", "negative"), "no settings"),
        ("dpe", ("plain_view", "learning_rate"), "no rates"),
        ("dpe", ("plain_view", "dataset"), None),
        ("onzeta", ("default", "tau_t"), None),
        ("onzeta", ("default", "tau_t"), -1.0),
        ("ecalp", ("default", "k_text"), None),
    ],
)
def test_settings_that_are_missing_or_do_not_fit_are_told_in_a_line(make, system, place, value):
    fixture = read_fixture(make(system))
    description = copy.deepcopy(fixture.description)
    *above, last = place
    settings = description["config"]["cases"]
    for name in above:
        settings = settings[name]
    if value is None:
        del settings[last]
    else:
        settings[last] = value
    with pytest.raises(ConfigError, match=r"fixture\.json: "):
        SYSTEMS[system](replace(fixture, description=description))


def test_inputs_that_lead_to_each_other_cannot_be_read(make, vectors):
    system = next(name for name, facts in FACTS.items() if "view_embeddings" in facts["inputs"])
    fixture = read_fixture(make(system))
    fixture.description["inputs"]["text_embeddings"] = {"formula": "view_embeddings + float32(1)"}
    fixture.description["inputs"]["view_embeddings"] = {"formula": "text_embeddings + float32(1)"}
    with pytest.raises(ConfigError, match="its formula cannot be read"):
        fixture.made("view_embeddings")


@pytest.mark.parametrize(
    "formula", ["open('x')", "golden_tensor.__class__", "V.real", "golden_tensor('a', (W,), 1)", "1 +", "[1]", "2 ** 9"]
)
def test_what_is_no_formula_is_refused(formula):
    with pytest.raises(ConfigError, match="here: its formula cannot be read"):
        evaluate_formula(formula, {"V": 2}, "here")
