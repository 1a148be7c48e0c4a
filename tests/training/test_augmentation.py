"""What training does to a sample's frames: the same for all of them, settled by the generator, within the published
bounds."""

import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zar_ray.training.augmentation import augment, draw_box
from zar_ray.training.options import AugmentConfig

SIZE = 24
EVERYTHING = AugmentConfig(crop="multi_scale", flip=0.5, colour_jitter=0.8, grey=0.2)

options_drawn = st.builds(
    AugmentConfig,
    crop=st.sampled_from(["random", "centre", "multi_scale", "random_resized"]),
    crop_places=st.sampled_from([5, 13]),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    colour_jitter=st.sampled_from([0.0, 0.8, 1.0]),
    grey=st.sampled_from([0.0, 0.2, 1.0]),
)
sizes = st.tuples(st.integers(SIZE, 44), st.integers(SIZE, 44))


def noise(frames, height, width):
    return np.random.default_rng(3).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def plain(colour, frames=1):
    return np.broadcast_to(np.array(colour, dtype=np.uint8), (frames, SIZE, SIZE, 3))


@settings(max_examples=60, deadline=None)
@given(options_drawn, sizes, st.integers(0, 999))
def test_all_frames_of_a_video_are_changed_alike(options, shape, seed):
    frames = noise(3, *shape)
    together = augment(frames, options, SIZE, np.random.default_rng(seed))
    alone = [augment(frames[t : t + 1], options, SIZE, np.random.default_rng(seed))[0] for t in range(3)]
    assert together.shape == (3, SIZE, SIZE, 3)
    assert together.dtype == np.uint8
    assert together.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(together, np.stack(alone))


@settings(max_examples=30, deadline=None)
@given(options_drawn, sizes, st.integers(0, 999))
def test_the_generator_settles_everything_and_the_frames_stay_as_they_were(options, shape, seed):
    frames = noise(2, *shape)
    frames.flags.writeable = False
    first, second = (augment(frames, options, SIZE, np.random.default_rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.shares_memory(first, frames)


@given(sizes, st.integers(0, 999))
def test_by_default_it_is_a_random_crop_and_draws_two_numbers(shape, seed):
    """Earlier trainings have to come out the same: the crop's offsets, drawn top first, and nothing else."""
    height, width = shape
    frames = noise(2, height, width)
    used, expected = np.random.default_rng(seed), np.random.default_rng(seed)
    result = augment(frames, AugmentConfig(), SIZE, used)
    top = int(expected.integers(0, height - SIZE + 1))
    left = int(expected.integers(0, width - SIZE + 1))
    np.testing.assert_array_equal(result, frames[:, top : top + SIZE, left : left + SIZE])
    assert used.bit_generator.state == expected.bit_generator.state


def boxes_of(height, width, options, size, draws=2000):
    rng = np.random.default_rng(0)
    return {draw_box(height, width, options, size, rng) for _ in range(draws)}


def test_the_multi_scale_boxes_are_those_of_vificlip():
    """Frames of 340x256 for an input of 224: all ten shapes, of sides worked out by hand, at all five places."""
    expected = set()
    for height, width in [
        (256, 256), (256, 224), (224, 256), (224, 224), (224, 192), (192, 224), (192, 192), (192, 168), (168, 192),
        (168, 168),
    ]:  # fmt: skip
        down, right = (256 - height) // 4, (340 - width) // 4
        for top, left in [(0, 0), (0, 4 * right), (4 * down, 0), (4 * down, 4 * right), (2 * down, 2 * right)]:
            expected.add((top, left, height, width))
    assert boxes_of(256, 340, AugmentConfig(crop="multi_scale"), 224) == expected


def test_tsns_other_places_lie_between_the_corners():
    options = AugmentConfig(crop="multi_scale", crop_scales=(0.5,), crop_places=13)
    found = {box[:2] for box in boxes_of(96, 128, options, 24, draws=400)}
    down, right = 48 // 4, 80 // 4
    even = {(i * down, j * right) for i in (0, 2, 4) for j in (0, 2, 4)}
    assert found == even | {(i * down, j * right) for i in (1, 3) for j in (1, 3)}


@given(st.integers(SIZE, 90), st.integers(SIZE, 90), st.integers(0, 999))
def test_a_random_resized_box_has_the_published_areas_and_shapes(height, width, seed):
    top, left, box_height, box_width = draw_box(
        height, width, AugmentConfig(crop="random_resized"), SIZE, np.random.default_rng(seed)
    )
    assert 0 <= top <= height - box_height
    assert 0 <= left <= width - box_width
    # Sides are rounded, each by half a pixel at most; none fits where the frame is narrower than any shape.
    if max(height, width) * 3 <= 4 * min(height, width):
        assert 0.08 * height * width <= (box_height + 0.5) * (box_width + 0.5)
        assert 3 / 4 * (box_height - 0.5) <= box_width + 0.5
        assert box_width - 0.5 <= 4 / 3 * (box_height + 0.5)


@given(sizes)
def test_the_centre_is_cut_out_without_a_draw(shape):
    frames, unused = noise(2, *shape), np.random.default_rng(1)
    before = unused.bit_generator.state
    cut = augment(frames, AugmentConfig(crop="centre"), SIZE, unused)
    top, left = (round((side - SIZE) / 2) for side in shape)
    np.testing.assert_array_equal(cut, frames[:, top : top + SIZE, left : left + SIZE])
    assert unused.bit_generator.state == before


def test_a_model_without_antialiasing_is_trained_without_it():
    frames, options = noise(1, 96, 96), AugmentConfig(crop="multi_scale", crop_scales=(1.0,))
    with_it, without = (
        augment(frames, options, SIZE, np.random.default_rng(2), antialias) for antialias in (True, False)
    )
    # Every fourth pixel's middle lies between two: the mean of four.
    first = frames[0, 1:3, 1:3].astype(float).mean(axis=(0, 1))
    assert np.abs(without[0, 0, 0] - first).max() <= 1
    assert np.abs(with_it[0, 0, 0] - first).max() > 5


@pytest.mark.parametrize(("share", "side"), [(222 / 256, 224), (226 / 256, 224), (221 / 256, 221), (227 / 256, 227)])
def test_a_box_close_to_the_input_size_is_made_of_it(share, side):
    boxes = boxes_of(256, 256, AugmentConfig(crop="multi_scale", crop_scales=(share,)), 224, draws=1)
    assert {box[2:] for box in boxes} == {(side, side)}


@given(
    st.integers(SIZE, 90),
    st.integers(SIZE, 90),
    st.lists(st.floats(0.001, 1), min_size=1, max_size=5),
    st.integers(0, 999),
)
def test_every_box_lies_in_the_frame(height, width, scales, seed):
    options = AugmentConfig(crop="multi_scale", crop_scales=tuple(scales))
    top, left, *sides = draw_box(height, width, options, SIZE, np.random.default_rng(seed))
    assert min(sides) >= 1
    assert 0 <= top <= height - sides[0]
    assert 0 <= left <= width - sides[1]


@given(st.integers(0, 199))
def test_a_multi_scale_crop_shows_its_box(seed):
    """On a frame whose colours are its coordinates, a resized box has the coordinates that it was cut from."""
    height, width = 96, 128
    rows, columns = np.mgrid[0:height, 0:width]
    frame = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)[None]
    options = AugmentConfig(crop="multi_scale")
    top, left, *sides = draw_box(height, width, options, 80, np.random.default_rng(seed))
    shown = augment(frame, options, 80, np.random.default_rng(seed))[0].astype(int)
    centres = (np.arange(80) + 0.5) / 80
    assert np.abs(shown[..., 0] - (top + centres * sides[0] - 0.5)[:, None]).max() <= 1
    assert np.abs(shown[..., 1] - (left + centres * sides[1] - 0.5)[None]).max() <= 1


@pytest.mark.parametrize(("option", "share"), [("flip", 0.5), ("flip", 1.0), ("colour_jitter", 0.8), ("grey", 0.2)])
def test_an_option_acts_on_its_share_of_the_videos(option, share):
    frames = noise(1, SIZE, SIZE)
    options = AugmentConfig(**{option: share})
    changed = [
        not np.array_equal(augment(frames, options, SIZE, np.random.default_rng(seed)), frames) for seed in range(400)
    ]
    assert np.mean(changed) == pytest.approx(share, abs=0.07)


def test_a_flip_mirrors_left_and_right():
    frames = noise(2, SIZE, SIZE)
    flipped = augment(frames, AugmentConfig(flip=1), SIZE, np.random.default_rng(0))
    np.testing.assert_array_equal(flipped, frames[:, :, ::-1])


def test_grey_keeps_the_luma_and_drops_the_colour():
    frames = noise(2, SIZE, SIZE)
    grey = augment(frames, AugmentConfig(grey=1), SIZE, np.random.default_rng(0)).astype(float)
    assert (grey == grey[..., :1]).all()
    assert np.abs(grey[..., 0] - frames @ np.array([0.299, 0.587, 0.114])).max() < 1.1


def test_the_jitter_changes_brightness_by_up_to_two_fifths():
    """A plain grey frame has neither contrast nor colour to change."""
    levels = [
        augment(plain((120, 120, 120)), AugmentConfig(colour_jitter=1), SIZE, np.random.default_rng(seed))
        for seed in range(300)
    ]
    assert all(np.ptp(level) <= 1 for level in levels)
    means = [level.mean() for level in levels]
    # The other operations round the levels, down too.
    assert 0.6 * 120 - 3 <= min(means) < 0.65 * 120
    assert 1.35 * 120 < max(means) <= 1.4 * 120


def test_the_jitter_turns_the_hue_by_up_to_a_tenth():
    """Brightness, contrast and saturation scale or shift all channels alike, and leave the hue as it is."""
    original = colorsys.rgb_to_hsv(60, 140, 100)[0]
    turns = []
    for seed in range(300):
        red, green, blue = augment(
            plain((60, 140, 100)), AugmentConfig(colour_jitter=1), SIZE, np.random.default_rng(seed)
        )[0, 0, 0]
        turns.append(colorsys.rgb_to_hsv(int(red), int(green), int(blue))[0] - original)
    assert -0.11 <= min(turns) < -0.08
    assert 0.08 < max(turns) <= 0.11


def test_the_jitter_changes_the_contrast_by_up_to_two_fifths():
    """The spread of a frame of two greys grows with brightness and contrast, its mean with brightness alone."""
    frame = np.full((1, SIZE, SIZE, 3), 80, dtype=np.uint8)
    frame[:, ::2] = 120
    ratios = []
    for seed in range(300):
        jittered = augment(frame, AugmentConfig(colour_jitter=1), SIZE, np.random.default_rng(seed)).astype(float)
        ratios.append(jittered.std() / jittered.mean() / 0.2)
    assert 0.55 <= min(ratios) < 0.66
    assert 1.34 < max(ratios) <= 1.45


def test_options_that_are_off_do_not_move_the_draws_of_others():
    frames = noise(1, SIZE, SIZE)
    alone = augment(frames, AugmentConfig(grey=0.5), SIZE, np.random.default_rng(5))
    beside = augment(frames, AugmentConfig(grey=0.5, flip=0.0, mixup=0.8), SIZE, np.random.default_rng(5))
    np.testing.assert_array_equal(alone, beside)
