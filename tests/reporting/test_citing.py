"""What is to be said and cited of a run follows its record, and every source that is declared is there."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from finished_runs import make_case, make_model_cost, make_record, make_summary_of, write_finished_run, write_record
from pylatexenc.latexwalker import LatexWalker
from shipped import shipped_methods, shipped_systems

from zar_ray.adaptation.methods import METHODS
from zar_ray.commands.report import report_cite_command
from zar_ray.data.datasets import known_benchmarks, load_benchmark
from zar_ray.errors import ConfigError
from zar_ray.models.systems.registry import registered
from zar_ray.reporting import citing
from zar_ray.reporting.citing import cite, references
from zar_ray.results.study_record import FinishedStudy
from zar_ray.storage import Storage
from zar_ray.study.options import EvalConfig


def cited(folder) -> tuple[str, list[str], str]:
    """The paragraph, the keys of its entries, and all of it."""
    text = cite(FinishedStudy.open(Storage(str(folder))))
    LatexWalker(text.partition("\n\n")[0], tolerant_parsing=False).get_latex_nodes()
    return text.partition("\n\n")[0], re.findall(r"^@\w+\{([^,]+),", text, re.MULTILINE), text


def test_every_declared_source_is_an_entry_with_what_an_entry_needs():
    known = references()
    declared = [METHODS[name].reference for name in shipped_methods()]
    declared += [registered()[name].reference for name in shipped_systems()]
    named = [load_benchmark(name).reference for name in known_benchmarks() if not name.startswith("demo")]
    assert all(declared)
    assert all(named)
    assert set(declared) | set(named) <= set(known)
    for key, entry in known.items():
        assert all(re.search(rf"^  {field}\s+= \{{", entry, re.MULTILINE) for field in ("title", "author", "year")), key
        assert entry.count("{") == entry.count("}")
        assert re.search(r"year\s+= \{(\d{4})\}", entry)[1] in key


@pytest.mark.parametrize("steps", [1, 3])
def test_the_paragraph_is_made_from_the_record(tmp_path, steps):
    own = {"zar": {"steps": steps, "lr": 0.0125 * steps}, "template": "a_{} & more", "precision": "bf16"}
    views = {"eval_views": "2x3", "eval_frames": 7, "rates": [1, 0.4], "views_per_rate": 5, "crops": 9, "frames": 11}
    methods = ("zero_shot", "zar", "tpt")
    run = write_finished_run(tmp_path / "run", videos=20 + steps, failures=steps, methods=methods, views=views, **own)
    text, keys, whole = cited(run)
    assert f"{20 + steps} videos, each classified among 4 classes" in text
    assert f"steps {steps}; lr {0.0125 * steps}" in text
    assert r"in the template a\_\{\} \& more" in text
    assert "6 evaluation views (2 in time, 3 in space) of 7 frames each" in text
    assert "see 90 of 11 frames: 5 segments of each length (1 and 0.4 of the video) in 9 crops" in text
    assert f"{steps} of {20 + steps} videos could not be used and counted as wrong" in text
    assert "McNemar's exact test" in text
    assert "zar-ray (commit f00d) on PyTorch 2, the image encoder in bf16, seed 0" in text
    assert keys == ["liang2025zar", "radford2021clip", "shu2022tpt"]
    assert all(rf"\cite{{{key}}}" in text for key in keys)
    assert "% dataset somewhere: declares no source; cite it yourself" in whole


def summary(folder, **fields):
    cases = [make_case(name, 0.5, split=split) for split in ("1", "2") for name in ("zero_shot", "zar")]
    return make_summary_of(cases, folder, **fields)


def test_benchmarks_systems_and_other_weights_have_sources_of_their_own(tmp_path):
    config = EvalConfig(dataset="hmdb51", model="vificlip", checkpoint="w_1.safetensors", limit=9).model_dump(
        mode="json"
    )
    record = make_record(summary(tmp_path, dataset="hmdb51", model_cost=make_model_cost()), [config])
    text, keys, whole = cited(write_record(tmp_path / "a", record, config))
    assert keys == ["liang2025zar", "kuehne2011hmdb", "rasheed2023vificlip", "radford2021clip"]
    assert r"HMDB51~\cite{kuehne2011hmdb}: 104 videos in 2 splits, 1 (52 videos, 8 classes) and 2" in text
    assert "(limited to 9)" in text
    assert r"the weights of w\_1.safetensors (fingerprint 0123456789ab, 149.6\,M parameters, 224 pixels)" in text
    assert "%" not in whole.replace(r"\%", "")
    config = EvalConfig(dataset="k600", pretrained="laion2b", method=("zero_shot",)).model_dump(mode="json")
    plain = make_summary_of([make_case("zero_shot", 0.5)], tmp_path, dataset="k600", random_weights=True)
    text, keys, _ = cited(write_record(tmp_path / "b", make_record(plain, [config]), config))
    assert keys == ["liang2025zar", "carreira2018kinetics600", "radford2021clip", "cherti2023openclip"]
    assert "with untrained weights" in text
    assert "segments" not in text
    assert "McNemar" not in text


def test_a_comment_stays_one_whatever_a_file_is_called(tmp_path):
    config = EvalConfig(dataset="hmdb51", checkpoint="a\n\\input{b}.pt").model_dump(mode="json")
    *_, whole = cited(write_record(tmp_path / "a", make_record(summary(tmp_path), [config]), config))
    assert "% weights a \\input{b}.pt: say how they were trained\n" in whole


def test_cells_are_told_by_what_varies(tmp_path):
    cells = {(("model", "a_1"), ("seed", str(seed))): {"seed": seed} for seed in (3, 8)}
    text, *_ = cited(write_finished_run(tmp_path / "run", cells=cells))
    assert r"What varies is: model a\_1; seed 3 and 8;" in text
    assert "seeds 3 and 8" in text


def test_a_package_s_method_brings_its_own_entry_or_is_told_to_lack_one(tmp_path, monkeypatch):
    entry = "@misc{me2026own,\n  title = {Own},\n}"
    own = replace(METHODS["zar"], name="own", reference=entry)
    run = write_finished_run(tmp_path / "run")
    for reference, keys in ((entry, ["liang2025zar", "radford2021clip", "me2026own"]), (None, None)):
        monkeypatch.setattr(citing, "METHODS", {**METHODS, "zar": replace(own, reference=reference)})
        _, found, whole = cited(run)
        assert found == (keys or ["liang2025zar", "radford2021clip"])
        assert ("% method zar: declares no source" in whole) is (keys is None)
    monkeypatch.setattr(citing, "METHODS", {**METHODS, "zar": replace(own, reference="gone2020")})
    with pytest.raises(ConfigError, match=r"method zar: its source gone2020 is no key"):
        cited(run)


def test_the_command_prints_it(tmp_path, capsys):
    run = write_finished_run(tmp_path / "run")
    assert not report_cite_command([str(run)])
    assert capsys.readouterr().out == cited(run)[2] + "\n"
    assert report_cite_command([str(tmp_path)]) == 1
    assert "holds no run.json" in capsys.readouterr().err
