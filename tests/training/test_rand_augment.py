"""RandAugment: the operations and amounts of ActionCLIP's training, each frame its own, settled by the generator."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zar_ray.training.augmentation import OPERATIONS, augment, rand_augment
from zar_ray.training.options import AugmentConfig, RandAugmentConfig

COLOUR = (200, 100, 50)
(
    AUTO_CONTRAST,
    EQUALIZE,
    INVERT,
    ROTATE,
    POSTERIZE,
    SOLARIZE,
    SOLARIZE_ADD,
    COLOR,
    CONTRAST,
    BRIGHTNESS,
    SHARPNESS,
    SHEAR_X,
    SHEAR_Y,
    CUT_OUT,
    TRANSLATE_X,
    TRANSLATE_Y,
) = range(16)


def plain(height=8, width=8, frames=1):
    return np.broadcast_to(np.array(COLOUR, dtype=np.uint8), (frames, height, width, 3))


def marked(row, column, size=121):
    """Black, with a white square of 3 x 3 around a place."""
    frame = np.zeros((1, size, size, 3), dtype=np.uint8)
    frame[:, row - 1 : row + 2, column - 1 : column + 2] = 255
    return frame


def under(number, frames, magnitude=9, other_way=False):
    """Frames under one operation, and the place 20 from the upper left where one is drawn."""
    rng = SimpleNamespace(
        integers=lambda count, size: [number] * size,
        random=lambda: 0.9 if other_way else 0.1,
        uniform=lambda low, high: 20.0,
    )
    return rand_augment(frames, RandAugmentConfig(operations=1, magnitude=magnitude), rng)


def centre(frame):
    """Row and column of what is white in a frame."""
    rows, columns = np.nonzero(frame[0, ..., 0] > 127)
    return rows.mean(), columns.mean()


def test_there_are_sixteen_operations():
    assert len(OPERATIONS) == 16
    with pytest.raises(IndexError):
        under(16, plain())


@pytest.mark.parametrize(
    ("number", "magnitude", "colour"),
    [
        (INVERT, 9, (55, 155, 205)),
        (POSTERIZE, 9, (128, 0, 0)),  # 1.2 bits, so 1
        (POSTERIZE, 0, (128, 0, 0)),  # 1 at least
        (POSTERIZE, 30, (192, 96, 48)),  # 4 bits
        (SOLARIZE, 9, (55, 155, 50)),  # from 76.8 on
        (SOLARIZE, 30, COLOUR),
        (SOLARIZE_ADD, 9, (22, 122, 83)),  # 33 more, and inverted from 128 on
        (SOLARIZE_ADD, 30, (0, 45, 95)),  # 110 more
        (BRIGHTNESS, 9, (128, 64, 32)),  # 0.64 of it
        (BRIGHTNESS, 15, COLOUR),
        (COLOR, 0, (130, 120, 115)),  # 0.1 of it, the rest its grey, 124
        (COLOR, 15, COLOUR),
        (SHARPNESS, 9, COLOUR),
        (SHEAR_X, 0, COLOUR),
        (ROTATE, 0, COLOUR),
    ],
)
def test_an_operation_does_what_the_magnitude_says_to_a_colour(number, magnitude, colour):
    changed = under(number, plain(), magnitude)
    assert np.abs(changed.astype(int) - colour).max() <= 2
    assert (changed == changed[0, 0, 0]).all()


@pytest.mark.parametrize(
    ("number", "rows", "columns"),
    [(TRANSLATE_X, 0, -30), (TRANSLATE_Y, -30, 0), (SHEAR_X, 0, -0.09 * 80), (SHEAR_Y, -0.09 * 80, 0)],
)
@pytest.mark.parametrize("other_way", [False, True])
def test_a_frame_is_moved_either_way_by_pixels(number, rows, columns, other_way):
    sign = -1 if other_way else 1
    found = centre(under(number, marked(80, 80), other_way=other_way))
    assert found == pytest.approx((80 + sign * rows, 80 + sign * columns), abs=1)


@pytest.mark.parametrize("other_way", [False, True])
def test_a_frame_is_turned_either_way_around_its_centre(other_way):
    row, column = centre(under(ROTATE, marked(60, 110), other_way=other_way))
    turned = np.degrees(np.arctan2(60 - row, column - 60))
    assert turned == pytest.approx(-9 if other_way else 9, abs=1)


def test_a_square_is_cut_out():
    cut = under(CUT_OUT, plain(60, 60), magnitude=15)[0]
    rows, columns = np.nonzero((cut == (125, 123, 114)).all(axis=-1))
    # 20 pixels around the place drawn, and Pillow's rectangles have their last row and column.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 30, 10, 30)
    assert len(rows) == 21 * 21


def test_contrast_and_histograms_reach_over_what_is_there():
    ramp = np.broadcast_to(np.arange(100, 150, dtype=np.uint8)[:, None, None], (1, 50, 20, 3))
    for number in (AUTO_CONTRAST, EQUALIZE):
        assert np.ptp(under(number, ramp)) == 255
    assert np.ptp(under(CONTRAST, ramp)) == pytest.approx(0.64 * 49, abs=2)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(0, 30), st.integers(0, 999))
def test_the_generator_settles_everything_and_the_frames_stay_as_they_were(operations, magnitude, seed):
    frames = np.random.default_rng(3).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    before = frames.copy()
    frames.flags.writeable = False
    options = RandAugmentConfig(operations=operations, magnitude=magnitude)
    first, second = (rand_augment(frames, options, np.random.default_rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(frames, before)
    assert (first.shape, first.dtype) == (frames.shape, np.uint8)


def test_every_frame_draws_operations_of_its_own_and_all_are_as_likely():
    changed = rand_augment(plain(4, 4, frames=4000), RandAugmentConfig(operations=1), np.random.default_rng(0))
    inverted = (changed == (55, 155, 205)).all(axis=(1, 2, 3))
    assert inverted.mean() == pytest.approx(1 / 16, abs=0.015)
    twice = rand_augment(plain(4, 4, frames=4000), RandAugmentConfig(operations=2), np.random.default_rng(0))
    for colour in ((35, 99, 131), (127, 191, 223)):  # inverted and then darkened, and the other way around
        assert 5 <= (twice == colour).all(axis=(1, 2, 3)).sum() <= 30


def test_it_comes_before_the_crop_and_is_off_by_default():
    frames = np.random.default_rng(3).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    options = AugmentConfig(flip=0.5, rand_augment=RandAugmentConfig(operations=2))
    rng = np.random.default_rng(5)
    expected = augment(rand_augment(frames, options.rand_augment, rng), AugmentConfig(flip=0.5), 24, rng)
    np.testing.assert_array_equal(augment(frames, options, 24, np.random.default_rng(5)), expected)
    assert AugmentConfig().rand_augment.operations == 0
