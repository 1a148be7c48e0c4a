"""A training that goes on from any of its checkpoints takes the steps that it would have taken, to the bit.

So it does with what is dropped at random, which is the same whoever takes a micro-batch, and which no evaluation sees.
"""

import random
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import ray.train
import ray.train.torch
import torch
from refused_operations import Refusing

from zar_ray.data.class_texts import prompts_of
from zar_ray.data.datasets import list_dataset
from zar_ray.data.probing import probe_listing
from zar_ray.errors import RunError
from zar_ray.models.architecture import build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.training.network import VideoTextModel
from zar_ray.training.options import AugmentConfig, RandAugmentConfig, TrainConfig
from zar_ray.training.progress import TrainingState
from zar_ray.training.validation import ValidationSet, validate
from zar_ray.training.videos import VideoTable
from zar_ray.training.worker import TrainingJob, _Worker, train_worker
from zar_ray.training.workers import WorkerNeeds
from zar_ray.video.transforms import Preprocessing

ARCHITECTURE = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


REGULARISED = {
    "augment": AugmentConfig(flip=0.5, rand_augment=RandAugmentConfig(operations=2)),
    "drop_path": 0.4,
    "attention_dropout": 0.2,
    "prompt_dropout": 0.4,
    "grad_checkpointing": True,
}
ADAPTED = {
    **ARCHITECTURE,
    "vision_cfg": {**ARCHITECTURE["vision_cfg"], "layers": 2},
    "temporal_adapters": {"frames": 2},
}


@pytest.fixture(scope="module")
def manifest(video_folder):
    return probe_listing(list_dataset(video_folder))


@pytest.fixture
def run(video_folder, manifest, monkeypatch, tmp_path):
    """Trains in this process, as one of so many workers, from a state or from the beginning; returns states by step."""

    def train(start=None, rank=0, workers=1, validation=None, architecture=ARCHITECTURE, **options):
        given = {"augment": AugmentConfig(mixup=0.8, cutmix=1.0, flip=0.5, label_smoothing=0.1), **options}
        config = TrainConfig(
            **{
                "dataset": str(video_folder),
                "architecture": "tiny",
                "frames": 2,
                "batch_size": 8,
                "micro_batch": 4,
                "steps": 7,
                "warmup_steps": 2,
                "lr": 1e-3,
                "checkpoint_steps": 2,
                "average_from": 0.0,
                **given,
            }
        )
        (prompts,) = prompts_of([manifest.class_names], config)
        progress = SimpleNamespace(put=lambda message: None)
        job = TrainingJob(config, VideoTable.of(manifest), prompts, architecture, WorkerNeeds(1, 0, 0), None, progress)
        if validation is not None:
            job = replace(job, validation=SimpleNamespace(prompts=prompts))
            monkeypatch.setattr("zar_ray.training.worker.validate", validation)
        states = {}

        def report(metrics, checkpoint=None, validation=False):
            assert (checkpoint is None) == (rank != 0)
            if checkpoint is not None:
                states[metrics["step"]] = TrainingState.of(checkpoint)

        checkpoint = None
        if start is not None:
            folder = tmp_path / f"from{start.step}"
            folder.mkdir()
            start.save(folder)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        group = SimpleNamespace(get_world_rank=lambda: rank, get_world_size=lambda: workers)
        monkeypatch.setattr(ray.train, "get_context", lambda: group)
        monkeypatch.setattr(ray.train, "get_checkpoint", lambda: checkpoint)
        monkeypatch.setattr(ray.train, "report", report)
        monkeypatch.setattr(ray.train.torch, "prepare_model", lambda model, **_: model)
        monkeypatch.setattr("zar_ray.training.worker.ray.get", lambda job: job)
        train_worker({"job": job, "lacking": 0})
        return states

    return train


@pytest.fixture
def regularised(run):
    """The same, of an EZ-CLIP that drops and augments whatever can be."""
    return partial(run, architecture=ADAPTED, **REGULARISED)


def same(one, other):
    """Whether two trainings ended with the same bits."""
    return torch.equal(one.history, other.history) and all(
        torch.equal(ours[name], theirs[name])
        for ours, theirs in ((one.network, other.network), (one.averaged, other.averaged))
        for name in ours.keys() | theirs.keys()
    )


@pytest.mark.slow
def test_it_goes_on_to_the_same_bits(run):
    whole = run()
    # Twelve videos in batches of eight: epochs end after steps 2, 3, 5 and 6.
    assert sorted(whole) == [2, 3, 4, 5, 6, 7]
    last = whole[7]
    assert last.history.shape == (7, 4)
    assert last.averaged_epochs == 4
    torch.manual_seed(99)  # whatever was drawn in between
    for step in (2, 5):
        again = run(whole[step])
        assert min(again) > step
        ended = again[7]
        assert torch.equal(ended.history, last.history)
        for ours, theirs in ((ended.network, last.network), (ended.averaged, last.averaged)):
            assert ours.keys() == theirs.keys()
            for name in ours:
                assert torch.equal(ours[name], theirs[name]), name
        moments = [one.optimiser["state"] for one in (ended, last)]
        for number in moments[1]:
            for name, value in moments[1][number].items():
                assert torch.equal(moments[0][number][name], value), (number, name)


@pytest.mark.slow
def test_losses_towards_the_start_add_up_and_go_on_to_the_same_bits(run):
    between = {"interpolated_loss": 0.5, "interpolated_share": (0.1, 0.9)}
    first, plain = run(steps=1, **between)[1], run(steps=1)[1]  # at first the start is where it is
    for ours, theirs in zip(first.optimiser["state"].values(), plain.optimiser["state"].values(), strict=True):
        assert torch.allclose(ours["exp_avg"], 1.5 * theirs["exp_avg"], rtol=1e-4, atol=1e-9)
    assert torch.equal(first.history[:, 0], plain.history[:, 0])  # the loss is the network's own
    whole = run(**between)
    assert same(run(whole[4], **between)[7], whole[7])
    assert not same(run(interpolated_loss=0.5, interpolated_share=(0.9, 0.9))[7], whole[7])


@pytest.mark.slow
def test_what_is_dropped_is_the_same_after_a_resumption(regularised):
    whole = regularised()
    torch.manual_seed(99)
    again = regularised(whole[4])
    assert min(again) > 4
    assert same(again[7], whole[7])
    assert not same(regularised(drop_path=0.0, prompt_dropout=0.0, attention_dropout=0.0)[7], whole[7])


def test_several_workers_drop_what_one_that_accumulates_drops(regularised, monkeypatch):
    gradients = []

    def note(optimiser, closure=None):
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        gradients.append([parameter.grad.clone() for parameter in parameters if parameter.grad is not None])

    monkeypatch.setattr(torch.optim.AdamW, "step", note)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: None)
    # Four micro-batches, which three cannot share evenly.
    for rank, workers in ((0, 1), (0, 3), (1, 3), (2, 3)):
        regularised(rank=rank, workers=workers, steps=1, micro_batch=2)
    alone, *shares = gradients
    assert len(alone) > 50
    # of each process its share, as nothing was exchanged
    for whole, *parts in zip(alone, *shares, strict=True):
        assert torch.allclose(torch.stack(parts).sum(dim=0), whole, atol=1e-6)
    assert not all(torch.allclose(one, other, atol=1e-3) for one, other in zip(*shares[:2], strict=True))


@pytest.mark.slow
def test_an_evaluation_in_between_drops_nothing_and_changes_nothing(regularised):
    seen = []

    def validation(model, *_):
        seen.append({name for name, module in model.clip.named_modules() if module.training})
        torch.rand(1)
        return 0, 0, 0

    assert same(regularised(validation=validation)[7], regularised()[7])
    assert seen == [set()] * 5


class TestMemoryRunsOut:
    @pytest.fixture
    def room(self, monkeypatch):
        """Room for so many videos a pass; gives the passes that fitted."""

        def make(room, error=None):
            forward, passes = VideoTextModel.forward, []

            def limited(self, pixels, *texts):
                found = forward(self, pixels, *texts)
                logits = found[0] if isinstance(found, tuple) else found
                if len(pixels) <= room:
                    passes.append(len(pixels))
                elif len(passes) % 2:

                    def full(_):
                        for one in self.parameters():  # as where some layers had added theirs by then
                            if one.grad is not None:
                                one.grad.add_(1e3)
                        raise error or torch.OutOfMemoryError("CUDA out of memory")

                    logits.register_hook(full)
                else:
                    raise error or torch.OutOfMemoryError("CUDA out of memory")
                return found

            monkeypatch.setattr(VideoTextModel, "forward", limited)
            return passes

        return make

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("trains", "micro_batch", "fits", "expected"), [("both", 8, 3, 2), ("context", 4, 1, 1), ("image", 8, 7, 4)]
    )
    def test_it_takes_the_steps_that_it_would_have_taken(self, run, room, caplog, trains, micro_batch, fits, expected):
        options = {"trains": trains, "micro_batch": micro_batch, "steps": 2, "average_from": None}
        whole = run(**options)[2]
        passes = room(fits)
        cut = run(**options)[2]
        assert torch.allclose(cut.history, whole.history, rtol=1e-4, atol=1e-5)
        for name, value in whole.network.items():
            assert torch.allclose(cut.network[name], value, atol=1e-5) or name.endswith("in_proj_bias"), name
        assert set(passes) == {expected}
        assert caplog.messages == [
            f"out of memory with {micro_batch} videos of a micro-batch at once: goes on with {expected}"
        ]

    def test_memory_that_runs_out_amid_a_step_costs_none_of_its_gradients(self, run, monkeypatch):
        whole = run(steps=1, average_from=None, micro_batch=2)[1]
        forward, passes = VideoTextModel.forward, []

        def limited(self, pixels):
            passes.append(len(pixels))
            found = forward(self, pixels)
            if len(passes) == 3:

                def full(_):
                    for one in self.parameters():
                        if one.grad is not None:
                            one.grad.add_(1e3)
                    raise torch.OutOfMemoryError("CUDA out of memory")

                found.register_hook(full)
            return found

        monkeypatch.setattr(VideoTextModel, "forward", limited)
        cut = run(steps=1, average_from=None, micro_batch=2)[1]
        assert passes == [2] * 3 + [1] * 8
        assert torch.allclose(cut.history, whole.history, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
    def test_memory_that_is_lacking_to_decode_is_no_matter_of_the_models_passes(self, run, monkeypatch, error):
        def broken(self, *_):
            raise error

        monkeypatch.setattr("zar_ray.training.samples.SampleReader.read", broken)
        with pytest.raises(RunError, match=r"^out of memory while videos were decoded; decode fewer"):
            run(steps=1, average_from=None)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "options", [{}, {"interpolated_loss": 0.5, "trains": "both"}, {"grad_checkpointing": True, "precision": "bf16"}]
    )
    def test_memory_that_runs_out_anywhere_in_a_step_changes_nothing(self, run, monkeypatch, options):
        accumulate, refusing = _Worker._accumulate, [Refusing()]

        def refused(self, *told):
            with refusing[0]:
                return accumulate(self, *told)

        monkeypatch.setattr(_Worker, "_accumulate", refused)
        told = {"steps": 1, "average_from": None, "checkpoint_steps": 5, **options}
        whole = run(**told)[1]
        for at in sorted(random.Random(0).sample(range(1, refusing[0].count + 1), 4)):
            refusing[0] = Refusing(at)
            cut = run(**told)[1]
            assert refusing[0].count > at, "it was done anew"
            rtol = 1e-4 if "precision" not in options else 1e-2
            assert torch.allclose(cut.history, whole.history, rtol=rtol, atol=1e-5), at
            refusing[0] = Refusing(at, torch.AcceleratorError("CUDA error: misaligned address"), forever=True)
            with pytest.raises(torch.AcceleratorError):
                run(**told)

    @pytest.mark.parametrize("room", [1, 0])
    def test_an_evaluation_that_does_not_fit_is_no_worse_accuracy(self, monkeypatch, manifest, room):
        clip = build_clip(ARCHITECTURE)
        model = ClipModel(clip, "tiny", Preprocessing(input_size=32), ARCHITECTURE)
        config = TrainConfig(dataset="set", validation="set", frames=2)
        (prompts,) = prompts_of([manifest.class_names], config)
        encode = model.encode_images

        def limited(pixels):
            if len(pixels) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return encode(pixels)

        monkeypatch.setattr(model, "encode_images", limited)
        evaluate = partial(validate, model, prompts, ValidationSet(VideoTable.of(manifest), prompts), config, 0, 1)
        if room:
            assert evaluate()[1:] == (len(manifest), 0)
        else:
            with pytest.raises(RunError, match=r"^--validation set: out of memory encoding .*with --validation-async$"):
                evaluate()

    def test_an_update_that_does_not_fit_is_told_and_not_tried_again(self, run, monkeypatch):
        def full(self, *_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(torch.optim.AdamW, "step", full)
        with pytest.raises(RunError, match=r"^out of memory updating the weights, .* train less with --trains$"):
            run(steps=1, average_from=None)

    def test_a_device_that_is_lost_in_an_update_is_no_mistake(self, run, monkeypatch):
        def lost(self, *_):
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

        monkeypatch.setattr(torch.optim.AdamW, "step", lost)
        with pytest.raises(torch.AcceleratorError):
            run(steps=1, average_from=None)

    def test_others_wait_for_one_exchange_a_step_whatever_it_tried(self, run, room, monkeypatch):
        """Each call is one that all processes must make: one more or less, and they would wait for ever."""
        exchanged = []
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: exchanged.append(values.clone()))
        options = {"rank": 1, "workers": 2, "steps": 2, "average_from": None}
        run(**options)
        whole = exchanged.copy()
        exchanged.clear()
        passes = room(1)
        run(**options)
        assert set(passes) == {1}
        assert [one.shape for one in exchanged] == [one.shape for one in whole]
        assert torch.allclose(exchanged[0], whole[0], atol=1e-5)

    def test_what_is_dropped_by_positions_is_the_same_in_parts(self, regularised, room):
        options = {"steps": 2, "attention_dropout": 0.0, "average_from": None}
        whole = regularised(**options)[2]
        assert set(room(2) or [2]) == {2}
        cut = regularised(**options)[2]
        assert torch.allclose(cut.history, whole.history, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"loss": "matching", "augment": AugmentConfig()},
                "whose videos --loss matching compares",
            ),
            ({"attention_dropout": 0.1}, "for all of which --attention-dropout and --head-dropout"),
        ],
    )
    def test_where_parts_would_give_other_numbers_it_is_refused(self, run, room, options, message):
        room(2)
        with pytest.raises(RunError, match=f"out of memory with a micro-batch of 4, {message}") as caught:
            run(**options)
        assert "--grad-checkpointing takes less and changes no number" in str(caught.value)

    def test_a_single_video_that_does_not_fit_ends_it_in_one_line(self, run, room):
        room(0)
        with pytest.raises(RunError, match="out of memory with one video at a time; --grad-checkpointing"):
            run()

    def test_a_lost_device_ends_the_process(self, run, room):
        room(0, torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
        with pytest.raises(torch.AcceleratorError):
            run()


def test_it_ends_with_a_checkpoint_where_there_is_room_for_more_workers(run, monkeypatch):
    options = {"steps": 3, "checkpoint_steps": 100, "average_from": None}
    whole = run(**options)
    with monkeypatch.context() as patch:
        patch.setattr("zar_ray.training.worker.Growth.due", lambda growth: True)
        grown = run(**options)
    # Neither the interval's end nor an epoch's.
    assert (sorted(whole), sorted(grown)) == ([2, 3], [1])
    assert same(run(grown[1], **options)[3], whole[3])
