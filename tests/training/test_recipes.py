"""The shipped training recipes: every one is valid, and they differ where their sources do."""

import re

import pytest
from shipped import shipped_systems

from zar_ray.models.systems.registry import find_system
from zar_ray.options.base import meaning
from zar_ray.options.layers import conf_dir, read_yaml, validate
from zar_ray.study.options import EvalConfig
from zar_ray.training.options import AugmentConfig, RandAugmentConfig, TrainConfig
from zar_ray.training.schedule import Schedule, learning_rate
from zar_ray.video.transforms import imagenet_preprocessing, short_side_for

RECIPES, EVALUATIONS = (sorted((conf_dir() / kind).glob("*.yaml")) for kind in ("train", "eval"))


def recipe(name):
    path = conf_dir() / "train" / f"{name}.yaml"
    return validate(TrainConfig, read_yaml(path), str(path))


def evaluation(name):
    path = conf_dir() / "eval" / f"{name}.yaml"
    return validate(EvalConfig, read_yaml(path), str(path))


def differences(name, other):
    """The options in which two recipes differ."""
    one, two = recipe(name).model_dump(), recipe(other).model_dump()
    return {key for key in one if one[key] != two[key]}


def test_every_system_has_a_recipe_of_its_name():
    assert {recipe(name).model for name in shipped_systems()} == set(shipped_systems())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_can_be_trained(path):
    config = validate(TrainConfig, read_yaml(path), str(path))
    assert config.precision != "fp16"
    assert config.batch_size % config.micro_batch == 0
    schedule = Schedule.of(config, 1000)
    assert schedule.warmup < schedule.steps


def test_vificlips_recipe_is_the_published_one():
    config = recipe("vificlip")
    assert (config.epochs, config.warmup_epochs, config.batch_size, config.lr) == (10, 5, 256, 8e-6)
    assert (config.frames, config.micro_batch, config.final_lr, config.cosine_from) == (32, 4, 0.01, "start")
    assert (config.betas, config.weight_decay, config.decays) == ((0.9, 0.98), 0.001, "all")
    assert config.augment == AugmentConfig(
        crop="multi_scale",
        crop_scales=(1.0, 0.875, 0.75, 0.66),
        flip=0.5,
        colour_jitter=0.8,
        grey=0.2,
        mixup=0.8,
        cutmix=1.0,
        cutmix_share=0.5,
        label_smoothing=0.1,
    )


def test_systems_sample_frames_as_their_own_code_does():
    ways = {name: recipe(name).sampling for name in ("vificlip", "xclip", "actionclip", "ezclip", "vitaclip", "a5")}
    assert ways == {
        **dict.fromkeys(("vificlip", "xclip"), "segments"),
        **dict.fromkeys(("actionclip", "ezclip"), "ticks"),
        **{"vitaclip": "stride", "a5": "dense"},
    }
    for name, way in ways.items():
        evaluated = evaluation(name)
        assert (evaluated.views.eval_sampling, evaluated.method) == (way, ("zero_shot",))
        assert evaluated.views.frames == evaluated.views.eval_frames or name == "vificlip"


def test_official_evaluations_have_their_own_views():
    views = {path.stem: evaluation(path.stem).views for path in EVALUATIONS}
    assert {name: one.eval_views for name, one in views.items()} == {
        **dict.fromkeys(("vificlip", "actionclip", "ezclip"), "1x1"),
        **{"xclip": "4x3", "vitaclip": "3x1", "a5": "5x1"},
    }
    # Three crops are of frames whose short side is the input's; the centre crop of ImageNet's larger ones.
    imagenet = imagenet_preprocessing(224)
    assert [short_side_for(views[name], imagenet) for name in ("xclip", "vificlip")] == [224, 256]
    assert evaluation("vitaclip").template == "{}"
    assert evaluation("actionclip").template_average == "probabilities"


def test_actionclip_compares_batches_of_128():
    config = recipe("actionclip")
    assert (config.batch_size, config.micro_batch, config.epochs, config.warmup_epochs) == (128, 128, 50, 5)
    assert (config.augment.crop_places, recipe("ezclip").augment.crop_places) == (13, 13)


def test_vitaclip_has_its_scripts_steps_and_no_warm_up():
    config = recipe("vitaclip")
    assert Schedule.of(config, 240_000) == Schedule(30_000, 0)
    assert (config.stride, config.augment) == (16, AugmentConfig(crop="random_resized"))
    assert (config.batch_size, config.lr, config.final_lr, config.betas) == (256, 4e-4, 0, (0.9, 0.999))


def test_a5_stays_near_its_peak_for_the_steps_of_its_readme():
    config = recipe("a5")
    schedule = Schedule.of(config, 3570)
    assert (schedule.steps, schedule.warmup, config.batch_size, config.frames) == (1100, 0, 64, 16)
    assert learning_rate(1099, schedule, config) == pytest.approx(1e-4, rel=1e-4)
    assert learning_rate(200_000, schedule, config) == pytest.approx(1e-6)
    assert find_system("a5").additions["frame_layers"]["layers"] == 1


def test_xclip_leaves_gains_biases_and_positions_alone():
    config, rule = recipe("xclip"), find_system("xclip").training
    assert (config.epochs, config.weight_decay, config.decays, config.fusion_lr) == (30, 0.001, "matrices", 10)
    assert rule.undecayed("visual.positional_embedding")
    assert rule.undecayed("fusion.mit.positional_embedding")
    assert not rule.undecayed("fusion.prompts_visual_proj")


def test_what_is_inferred_is_said_of_two_recipes_alone():
    """Of ZAR's training the paper says little, and of TC-CLIP's nothing may be read."""
    marked = {path.stem for path in RECIPES if re.search("CHOSEN|INFERRED", path.read_text())}
    assert marked == {"k400_zar", "tcclip"}


def test_zars_training_is_vificlips_with_its_own_frames_and_plain_cross_entropy():
    # ViFi-CLIP adds nothing to the CLIP that it is trained from.
    assert differences("k400_zar", "vificlip") == {"model", "frames", "augment", "micro_batch"}
    config = recipe("k400_zar")
    assert config.frames == 16
    assert config.augment == recipe("vificlip").augment.model_copy(
        update={"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0}
    )


def test_few_videos_are_trained_on_for_longer_and_more_slowly():
    shared = {"split", "protocol", "batch_size", "epochs", "lr"}
    assert differences("few_shot", "vificlip") == shared
    assert differences("base_to_novel", "vificlip") == shared | {"seeds"}
    for name, epochs in (("few_shot", 50), ("base_to_novel", 11)):
        config = recipe(name)
        assert (config.epochs, config.batch_size, config.lr, config.shots) == (epochs, 64, 2e-6, (16,))
        assert config.protocol == name


def test_coop_trains_the_context_alone():
    config = recipe("coop")
    assert (config.trains, config.context_vectors, config.class_texts) == ("context", 16, None)
    assert (config.augment.mixup, config.augment.cutmix, config.augment.label_smoothing) == (0, 0, 0)


def test_the_demo_has_its_steps_whatever_its_videos():
    assert Schedule.of(recipe("demo"), 1200) == Schedule(900, 150)


def test_recipes_leave_nothing_out_that_is_published():
    assert not [path.stem for path in RECIPES if "NOT BUILT" in path.read_text()]


def test_actionclip_is_trained_under_rand_augment():
    config = recipe("actionclip")
    assert config.augment.rand_augment == RandAugmentConfig(operations=2, magnitude=9)
    # The head of the published checkpoints, Transf, drops nothing, nor do the towers.
    assert (config.drop_path, config.attention_dropout, config.head_dropout) == (0, 0, 0)


def test_ezclip_is_trained_with_its_published_numbers():
    config = recipe("ezclip")
    assert (config.drop_path, config.attention_dropout, config.prompt_dropout) == (0.1, 0.1, 0.1)
    assert config.augment.rand_augment.operations == 0
    assert (config.batch_size, config.micro_batch, config.frames, config.motion_loss) == (80, 80, 8, 1)
    assert (config.epochs, config.warmup_epochs, config.lr, config.betas) == (150, 5, 1e-4, (0.9, 0.98))


def test_every_option_that_changes_the_weights_is_part_of_what_a_training_is():
    options = meaning(TrainConfig())
    assert {"drop_path", "attention_dropout", "prompt_dropout", "head_dropout", "template_average"} <= options.keys()
    assert options["augment"]["rand_augment"] == {"operations": 0, "magnitude": 9}
    assert not {"output", "num_workers", "validation"} & options.keys()


def test_openvclips_recipe_is_its_scripts():
    config = recipe("openvclip")
    assert (config.trains, config.template, config.frames) == ("image", "clip_kinetics", 8)
    assert (config.interpolated_loss, config.interpolated_share) == (0.5, (0.0, 0.6))
    assert (config.epochs, config.warmup_epochs, config.average_from, config.batch_size) == (22, 2, 1, 64)
    assert (config.lr, config.final_lr, config.cosine_from) == (3.33e-6, 0.01, "warmup")
    assert (config.betas, config.weight_decay, config.decays, config.clip_grad) == ((0.9, 0.999), 0.01, "matrices", 1)
