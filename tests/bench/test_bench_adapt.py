"""The bench: its reference is right, its counts are counted, and it runs with torch and open_clip alone."""

import copy
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.models.clip import ClipModel
from zar_ray.models.loading import load_model
from zar_ray.models.text import PromptedClasses

pytestmark = pytest.mark.slow

NAMES = ("red circle", "green square", "blue_bar", "yellow star moving left", "dot")


@pytest.fixture(scope="module")
def bench(repository):
    """The modules of bench/, which is no package."""
    sys.path.insert(0, str(repository / "bench"))
    try:
        import adapt
        import compare
        import inputs
        import measure
        import reference
        import sides
    finally:
        sys.path.pop(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # little work, and cores that tests share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_CPU_PRODUCTS", ((256, 256, 256),))
        yield SimpleNamespace(
            adapt=adapt, compare=compare, inputs=inputs, measure=measure, reference=reference, sides=sides
        )
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def both(bench, tiny_checkpoint):
    """The two sides on one tiny model."""
    options = AdaptationOptions(checkpoint=tiny_checkpoint, device="cpu", method=("zar",), encoder_batch=50)
    model = load_model(options)
    reference = bench.reference.Reference(
        model.clip, NAMES, model.context, model.preprocessing, options.zar, options.encoder_batch
    )
    return bench.sides.ReferenceSide(reference), bench.sides.OurSide(model, NAMES, options)


@pytest.fixture(scope="module")
def outcomes(bench, both):
    """Three videos in groups of two; the first two through the reference too."""
    plain, ours = both

    def make(number):
        return bench.inputs.make_video(number, 60, ours.model.preprocessing, seed=3)

    return list(bench.compare.run_pairs(plain, ours, make, 3, 2, 2, adapt=True, watch_memory=True))


@pytest.fixture(scope="module")
def report(bench, tiny_checkpoint, tmp_path_factory):
    """What a run writes."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    words = f"--checkpoint {tiny_checkpoint} --class-count 6 --frames 20 40 --videos 2 --reference-videos 1"
    assert bench.adapt.main([*words.split(), "--device", "cpu", "--json", str(path)]) == 0
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return json.loads(path.read_text())


class TestReference:
    def test_text_features_are_open_clip_s_own(self, both):
        plain, ours = both
        prompts = [f"a video of a {name.replace('_', ' ')}." for name in NAMES]
        with torch.no_grad():
            expected = ours.model.clip.encode_text(ours.model.tokenize(prompts), normalize=True)
            found = plain.reference.text_features(plain.reference.initial_context)
        assert torch.allclose(found, expected, atol=1e-6)

    def test_both_sides_say_the_same(self, bench, outcomes):
        found = bench.compare.agreement([(one.reference, one.ours) for one in outcomes if one.reference])
        assert (found.decided, found.encoded, found.same_top1, found.same_selection) == (2, 2, 2, 2)
        assert found.views < 1e-5
        assert max(found.before, found.after) < 1e-3
        moved = outcomes[0].ours.decisions[0]
        assert (moved.logits_after - moved.logits_before).abs().max() > 1e-2, "nothing was tuned"

    def test_features_and_gradient_are_the_same(self, bench, both):
        plain, ours = both
        views = bench.inputs.make_features(0, ours.classes.initial_features, seed=0, views=8).views
        found = bench.compare.text_agreement(plain, ours, views)
        assert 0 < found.gradient < 1e-5
        assert found.features < 1e-5
        assert max(found.reference_rounding, found.our_rounding) < 1e-5

    def test_gradient_in_float64(self, bench, both):
        """Differences in float32 are rounding and nothing else."""
        _, ours = both
        views = bench.inputs.make_features(1, ours.classes.initial_features, seed=0, views=8).views.double()
        clip = copy.deepcopy(ours.model.clip).double()
        model = ClipModel(clip, "exact", ours.model.preprocessing, ours.model.architecture)
        settings = (model.context, model.preprocessing, ours.options.zar, 1)
        expected = bench.reference.Reference(clip, NAMES, *settings).gradient(views)
        found = bench.compare.our_gradient(PromptedClasses(model, NAMES), views)
        assert (found - expected).abs().max() < 1e-11 * expected.abs().max()

    def test_fused_or_not_is_the_same(self, bench, both):
        plain, ours = both
        video = bench.inputs.make_video(0, 20, ours.model.preprocessing, seed=3)
        other = copy.copy(plain.reference)
        other.fused = not other.fused
        before = torch.backends.mha.get_fastpath_enabled()
        found, expected = other.encode(video.frames, video.plan)[0], plain.reference.encode(video.frames, video.plan)[0]
        assert torch.allclose(found.views, expected.views, atol=1e-6)
        assert torch.backends.mha.get_fastpath_enabled() == before


class TestCounts:
    def test_images(self, bench, both, outcomes):
        plans = [bench.inputs.make_plan(number, 60, both[1].model.preprocessing, seed=3) for number in range(3)]
        assert outcomes[0].reference.images == 2 * 784
        assert [pair.ours.images for pair in outcomes] == [
            len(plans[0].images) + len(plans[1].images),
            len(plans[2].images),
        ]
        assert outcomes[1].reference is None

    def test_tokens(self, both, outcomes):
        assert outcomes[0].reference.forward_tokens == 2 * 2 * 77 * len(NAMES)
        assert outcomes[0].reference.backward_tokens == 2 * 77 * len(NAMES)
        assert outcomes[0].ours.forward_tokens == outcomes[0].ours.backward_tokens == 2 * both[1].classes.tokens

    def test_means_are_of_videos(self, bench, outcomes):
        ours = bench.compare.costs([(pair.ours, pair.count) for pair in outcomes], [])
        assert ours.videos == 3
        assert ours.images == pytest.approx(sum(pair.ours.images for pair in outcomes) / 3)
        ratio = bench.compare.spread(outcomes, "seconds")
        told, first = outcomes[0].reference.seconds / 2, outcomes[0].ours.seconds / 2
        assert ratio.least == ratio.most == pytest.approx(told / first)
        assert ratio.of_means == pytest.approx(told / ours.seconds)

    def test_memory(self, bench):
        with bench.measure.PeakMemory(torch.device("cpu")) as memory:
            held = torch.ones(2**24)
        assert held.sum() == 2**24
        assert memory.peak is None or 60 * 2**20 < memory.peak < 500 * 2**20

    def test_flops_of_a_product(self, bench):
        left, right = torch.ones(3, 5), torch.ones(5, 7)
        assert bench.measure.count_flops(lambda: left @ right) == 2 * 3 * 5 * 7


class TestInputs:
    def test_frames_change_and_come_again(self, bench, both):
        def frames(number):
            return bench.inputs.make_video(number, 50, both[1].model.preprocessing, seed=1).frames

        first = frames(0)
        assert torch.equal(first, frames(0))
        assert not torch.equal(first[:5], frames(1)[:5])
        assert np.diff(first.numpy().astype(int), axis=0).any(axis=(1, 2, 3)).all()
        assert first.float().std() > 20

    def test_names_differ(self, bench):
        names = bench.inputs.made_up_names(bench.inputs.MOST_CLASSES)
        assert len(set(names)) == len(names) == 192
        assert bench.inputs.made_up_names(51) == names[:51]


class TestReport:
    def test_holds_what_the_results_page_shows(self, report):
        assert {"cpu", "gpu", "threads", "torch", "open_clip"} <= set(report["machine"])
        encoder = report["encoder"]
        assert 0 < encoder["reference_to_open_clip"] <= 1
        assert encoder["fused_is_faster"] in (True, False)
        assert encoder["peak_flops"] > 0
        assert 0 < encoder["our_product_share"] <= 1
        assert 0 < encoder["our_flops"] < encoder["open_clip_flops"]
        assert report["setup_seconds"] > 0
        assert [load["frames"] for load in report["loads"]] == [20, 40]
        for load in report["loads"]:
            assert load["classes"] == 6
            assert (load["reference"]["videos"], load["ours"]["videos"]) == (1, 2)
            assert load["reference"]["images"] == 784
            assert set(load["ratios"]) == {"encode", "adapt", "total"}
            assert all(set(ratio) == {"of_means", "least", "median", "most"} for ratio in load["ratios"].values())
            assert 0 < load["encoder_share"] < 1
            assert load["reference_to_open_clip"] > 0
            assert 0 < load["encoder_share_of_peak"] < 1
            assert load["agreement"]["same_top1"] == 1
            assert load["precision_difference"] is None
            assert max(load["text"].values()) < 1e-5

    def test_tells_neither_paths_nor_names_of_files(self, report, tiny_checkpoint):
        assert str(tiny_checkpoint.parent) not in json.dumps(report)

    def test_text_alone(self, bench, tiny_checkpoint, tmp_path):
        options = bench.adapt.BenchOptions(checkpoint=tiny_checkpoint, part="text", class_count=4, device="cpu")
        report = bench.adapt.run(options)
        (load,) = report.loads
        assert report.encoder is load.encoder_share is load.ratios["encode"] is None
        assert load.ours.images == 0
        assert load.ratios["adapt"].of_means > 0
        assert load.agreement.same_top1 == load.agreement.decided == 2

    def test_images_alone_in_bf16(self, bench, tiny_checkpoint):
        options = bench.adapt.BenchOptions(
            checkpoint=tiny_checkpoint, part="image", precision="bf16", device="cpu", frames=(20,), videos=1
        )
        (load,) = bench.adapt.run(options).loads
        assert load.ours.forward_tokens == 0
        assert 0 < load.precision_difference.views < 0.05
        assert load.text is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--frame 95", "Unrecognized options: --frame"),
        ("--frames 0", "frames.0 Input should be greater than or equal to 1"),
        ("--part images", "invalid choice 'images' for argument '--part'"),
        ("--classes nowhere.txt", "--classes nowhere.txt: cannot be read: No such file or directory"),
        ("--json nowhere/bench.json", "--json nowhere/bench.json: there is no such folder"),
        ("--device gpu", 'device "gpu" is unknown'),
    ],
)
def test_mistakes_are_one_line(bench, capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    assert bench.adapt.main(words.split()) != 0
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("bench: ")
    assert said.err.count("\n") == 1
    assert not said.out


@pytest.mark.process
def test_loads_without_ray_and_decoders(repository):
    program = (
        "import sys; sys.path.insert(0, 'bench'); import adapt;"
        " print({'ray', 'decord', 'av', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
