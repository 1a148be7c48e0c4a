"""Learned contexts: their files, and vectors in the place of words for every method."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from zar_ray.adaptation.adapter import VideoAdapter, make_cases
from zar_ray.adaptation.base import VideoFeatures
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.adaptation.zar import ZarConfig, tuning_steps
from zar_ray.data.class_texts import ClassPrompts, ContextFile, prompts_of, read_context_file
from zar_ray.errors import ConfigError, ModelError
from zar_ray.models.architecture import build_clip
from zar_ray.models.checkpoints import save_checkpoint
from zar_ray.models.clip import ClipModel
from zar_ray.models.learned_context import METADATA_KEY, LearnedContext, parse_context, save_context
from zar_ray.models.text import PromptedClasses
from zar_ray.training.options import TrainConfig
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import plan_views
from zar_ray.video.transforms import Preprocessing

NAMES = ("Apply_Eye_Makeup", "YoYo", "high jump (athletics)")
WORDS = "a video of a"
OPTIONS = AdaptationOptions(views=ViewConfig(frames=4, eval_frames=5))


def context_of(model, vectors, place="context.safetensors"):
    return LearnedContext(vectors, WORDS, model.name, model.fingerprint, {"steps": 3}, place)


@pytest.fixture(scope="module")
def words(model):
    return PromptedClasses(model, NAMES, WORDS)


@pytest.fixture
def file_of(model, tmp_path):
    """Writes vectors as a learned context."""

    def write(vectors, name="context.safetensors"):
        save_context(context_of(model, vectors), tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def plan():
    return plan_views("a/b.mp4", 31, 48, 80, OPTIONS.views, Preprocessing(32), seed=0)


@pytest.fixture
def frames(plan):
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (len(plan.frames), plan.height, plan.width, 3), dtype=np.uint8)


class TestFile:
    def test_it_tells_all_that_was_saved(self, model, tmp_path):
        context = context_of(model, torch.randn(5, 64))
        file = tmp_path / "made" / "context.safetensors"
        save_context(context, file)
        read = parse_context(file.read_bytes(), str(file))
        assert torch.equal(read.vectors, context.vectors)
        assert (read.start, read.notes, read.place) == (WORDS, {"steps": 3}, str(file))
        assert (read.model_name, read.model_fingerprint) == (model.name, model.fingerprint)
        assert [one.name for one in file.parent.iterdir()] == [file.name]

    def test_it_ends_in_safetensors(self, model, tmp_path):
        with pytest.raises(ValueError, match=r"ends in \.safetensors"):
            save_context(context_of(model, torch.randn(5, 64)), tmp_path / "context.pt")

    @given(st.data())
    def test_a_damaged_one_is_refused_in_one_line(self, model, data):
        whole = save({"context": torch.ones(2, 64)}, {METADATA_KEY: "{}"})
        cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
        with pytest.raises(ModelError, match=r"^here: cannot be read as safetensors \(.+\)$"):
            parse_context(cut, "here")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "is a Git LFS pointer"),
            (save({"context": torch.ones(2, 64)}, {METADATA_KEY: "[" * 100_000}), "is damaged \\(nested too deep\\)"),
            (b"\xff" * 8 + b"{}", "cannot be read as safetensors"),
        ],
    )
    def test_one_that_claims_much_is_refused_in_one_line(self, content, message):
        with pytest.raises(ModelError, match=f"^here: .*{message}"):
            parse_context(content, "here")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"format": 2}, "is of format 2, and this zar-ray reads format 1"),
            ({"start": None, "model": None}, "its learned context is damaged"),
            ({"notes": 3}, "its learned context is damaged"),
        ],
    )
    def test_one_of_another_form_is_refused(self, changes, message):
        about = {"format": 1, "start": WORDS, "model": {"name": "x", "fingerprint": "y"}, "notes": {}, **changes}
        content = save({"context": torch.ones(2, 64)}, {METADATA_KEY: json.dumps(about)})
        with pytest.raises(ModelError, match=message):
            parse_context(content, "here")

    @pytest.mark.parametrize(
        "tensors",
        [
            {"other": torch.ones(2, 64)},
            {"context": torch.ones(64)},
            {"context": torch.ones(0, 64)},
            {"context": torch.full((2, 64), torch.nan)},
        ],
    )
    def test_vectors_of_another_form_are_refused(self, tensors):
        about = {"format": 1, "start": WORDS, "model": {"name": "x", "fingerprint": "y"}, "notes": {}}
        content = save(tensors, {METADATA_KEY: json.dumps(about)})
        with pytest.raises(ModelError, match="here: its learned context is damaged"):
            parse_context(content, "here")

    def test_a_checkpoint_is_none(self, model, tmp_path):
        file = tmp_path / "model.safetensors"
        save_checkpoint(model.clip, model.architecture, model.preprocessing, file)
        with pytest.raises(ModelError, match=r"holds no learned context; .* --checkpoint"):
            parse_context(file.read_bytes(), str(file))

    def test_one_that_is_not_there_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match=r"--context .*none.safetensors: cannot be read \(No such file"):
            prompts_of([NAMES], OPTIONS.model_copy(update={"context": str(tmp_path / "none.safetensors")}))


class TestClasses:
    @pytest.mark.parametrize("position", ["end", "middle", "front"])
    def test_the_words_own_embeddings_give_the_words_own_results(self, model, position):
        words = PromptedClasses(model, NAMES, WORDS, position)
        learned = PromptedClasses(model, NAMES, context_of(model, words.initial_context), position)
        assert torch.equal(learned.initial_context, words.initial_context)
        assert torch.equal(learned.initial_features, words.initial_features)
        gradients = torch.randn(2, 3, 24)
        assert torch.equal(learned.initial_gradients(gradients), words.initial_gradients(gradients))
        assert learned.tokens == words.tokens

    @pytest.mark.parametrize("length", [1, 16])
    def test_any_number_of_vectors_stands_in_front_of_the_name(self, model, length):
        vectors = torch.randn(length, 64, generator=torch.Generator().manual_seed(length))
        classes = PromptedClasses(model, NAMES, context_of(model, vectors))
        tower = model.text_tower
        for name, feature in zip(NAMES, classes.initial_features, strict=True):
            # start, vectors, name, end: as CoOp puts them together
            ids = model.tokenize([f"{name.replace('_', ' ')}."])
            end = int(ids.argmax())
            whole = torch.cat([ids[:, :1], torch.ones(1, length, dtype=torch.int64), ids[:, 1 : end + 1]], dim=1)
            own = tower.token_embedding(ids)[0, : end + 1]
            states = torch.cat([own[:1], vectors, own[1:]])[None]
            with torch.no_grad():
                expected = model.encode_embedded_text(states, whole)[0]
            assert torch.allclose(feature, torch.nn.functional.normalize(expected, dim=0), atol=1e-5)

    def test_another_model_is_refused(self, model, architecture, words):
        torch.manual_seed(9)
        other = ClipModel(build_clip(architecture), "other", Preprocessing(32), architecture)
        context = context_of(model, words.initial_context)
        with pytest.raises(ModelError) as caught:
            PromptedClasses(other, NAMES, context)
        assert f"was learned for tiny ({model.fingerprint}), and this model is other" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_it_goes_without_texts(self, model, words):
        with pytest.raises(ConfigError, match=r"context\.safetensors: goes without a template and class texts"):
            PromptedClasses(model, NAMES, context_of(model, words.initial_context), texts=[["one"], ["two"], ["3"]])

    def test_too_many_vectors_are_refused(self, model):
        with pytest.raises(ConfigError, match="tokens long and the model reads 77"):
            PromptedClasses(model, NAMES, context_of(model, torch.zeros(74, 64)))


class TestRuns:
    """What `--context FILE.safetensors` does."""

    def prompts(self, file):
        return prompts_of([NAMES, NAMES[:2]], OPTIONS.model_copy(update={"context": str(file)}))

    def test_prompts_hold_the_files_content(self, file_of, words):
        file = file_of(words.initial_context)
        prompts = self.prompts(file)
        assert {one.context for one in prompts} == {ContextFile(str(file), file.read_bytes())}
        file.unlink()  # as on a node that does not have it
        assert len(repr(prompts)) < 1000

    def test_training_has_the_same_option(self, file_of, words):
        file = file_of(words.initial_context)
        (prompts,) = prompts_of([NAMES], TrainConfig(context=str(file)))
        assert prompts == self.prompts(file)[0]

    def test_cases_depend_on_the_content_and_not_on_the_place(self, model, file_of, words, tmp_path):
        def ids(file):
            options = OPTIONS.model_copy(update={"context": str(file)})
            return [case.case_id for case in make_cases(options, model.fingerprint, self.prompts(file))]

        first = file_of(words.initial_context)
        moved = tmp_path / "elsewhere.safetensors"
        shutil.copy(first, moved)
        before = ids(first)
        assert ids(moved) == before
        with_words = [case.case_id for case in make_cases(OPTIONS, model.fingerprint, prompts_of([NAMES], OPTIONS))]
        save_context(context_of(model, words.initial_context + 1e-3), first)
        assert len({*before, *ids(first), *with_words}) == 4 + 4 + 2

    def test_a_learned_context_of_words_decides_as_the_words(self, model, file_of, words, plan, frames):
        file = file_of(words.initial_context)
        ours = VideoAdapter(model, self.prompts(file)[:1], ("zero_shot", "zar"), OPTIONS)(frames, plan)
        theirs = VideoAdapter(model, prompts_of([NAMES], OPTIONS), ("zero_shot", "zar"), OPTIONS)(frames, plan)
        for one, other in zip(ours.cases, theirs.cases, strict=True):
            assert one.case_id != other.case_id
            assert torch.equal(one.decision.logits_before, other.decision.logits_before)
            assert torch.equal(one.decision.logits_after, other.decision.logits_after)

    def test_both_methods_start_from_the_vectors(self, model, file_of, words, plan, frames):
        vectors = words.initial_context + 0.3 * torch.randn(4, 64, generator=torch.Generator().manual_seed(2))
        adapter = VideoAdapter(model, self.prompts(file_of(vectors))[:1], ("zero_shot", "zar"), OPTIONS)
        zero_shot, zar = (case.decision for case in adapter(frames, plan).cases)
        (classes,) = adapter.class_sets
        features = VideoFeatures(torch.randn(1, 24), torch.randn(6, 24))
        (step,) = tuning_steps(features.views[None], classes, ZarConfig(lr=0.005))
        assert (step.contexts[0] - vectors).abs().max() < 0.006  # AdamW's first step is of lr's length
        assert torch.equal(zar.logits_before, zero_shot.logits_after)
        with_words = VideoAdapter(model, prompts_of([NAMES], OPTIONS), ("zero_shot",), OPTIONS)(frames, plan)
        assert not torch.allclose(with_words.cases[0].decision.logits_after, zero_shot.logits_after, atol=1e-4)

    def test_a_template_is_refused(self, file_of, words):
        options = OPTIONS.model_copy(
            update={"context": str(file_of(words.initial_context)), "template": "a clip of a {}."}
        )
        with pytest.raises(ConfigError, match="--template and --context"):
            prompts_of([NAMES], options)

    def test_the_path_may_be_relative_and_of_a_home(self, file_of, words, monkeypatch):
        file = file_of(words.initial_context)
        monkeypatch.chdir(file.parent)
        monkeypatch.setenv("HOME", str(file.parent))
        assert read_context_file(file.name) == read_context_file(f"~/{file.name}") == read_context_file(file)

    def test_a_damaged_file_names_itself(self, model, tmp_path):
        file = tmp_path / "context.safetensors"
        file.write_bytes(b"no")
        with pytest.raises(ModelError, match=f"^{file}: cannot be read as safetensors"):
            PromptedClasses.of(model, ClassPrompts(NAMES, read_context_file(file)))
