"""The distributions of random boxes and corners: RandomResizedCrop, RandomErasing and RandomPerspective."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grafit_jax.views import augment, crops

KEY = jax.random.key(7)


def boxes(count, height, width, scale, ratio):
    u = jax.random.uniform(KEY, (count, 22))
    found = jax.jit(jax.vmap(lambda u: jnp.stack(crops.random_box(u, height, width, scale, ratio))))(u)
    return np.asarray(found, np.float64).T


@pytest.mark.parametrize("height, width", [(32, 32), (24, 36)])
def test_crop_boxes_have_their_distribution(height, width):
    top, left, h, w = boxes(20_000, height, width, (0.2, 0.8), (3 / 4, 4 / 3))
    eps = 1e-3
    assert top.min() >= 0 and left.min() >= 0
    assert (top + h).max() <= height + eps and (left + w).max() <= width + eps
    share, ratio = h * w / (height * width), w / h
    assert 0.2 - eps <= share.min() < 0.21 and 0.77 < share.max() <= 0.8 + eps
    assert 0.75 - eps <= ratio.min() < 0.76 and 1.32 < ratio.max() <= 4 / 3 + eps
    # The position is uniform: its mean is 1/2 of the range (standard error 0.002).
    assert np.mean(top / (height - h)) == pytest.approx(0.5, abs=0.01)
    assert np.mean(left / (width - w)) == pytest.approx(0.5, abs=0.01)


def test_crop_boxes_have_the_distribution_of_torchvision():
    """Means agree within 4 sigma with rejection sampling as in RandomResizedCrop.get_params, without rounding."""
    scale, log_ratio = (0.5, 1.0), (math.log(0.5), math.log(2))
    rng, kept = np.random.default_rng(3), []
    while len(kept) < 20_000:
        area, ratio = rng.uniform(*scale), math.exp(rng.uniform(*log_ratio))
        if area * ratio <= 1 and area / ratio <= 1:
            kept.append((area, math.log(ratio), abs(math.log(ratio))))
    _, _, h, w = boxes(20_000, 32, 32, scale, (0.5, 2))
    got = np.stack([h * w / 32**2, np.log(w / h), np.abs(np.log(w / h))])
    expected = np.array(kept).T
    tolerance = 4 * expected.std(1) * math.sqrt(2 / 20_000)
    assert (np.abs(got.mean(1) - expected.mean(1)) < tolerance).all()


def test_a_crop_that_never_fits_is_central():
    top, left, h, w = boxes(50, 20, 40, (1.0, 1.0), (3 / 4, 4 / 3))  # the full area has ratio 2
    np.testing.assert_allclose([top, h], [np.zeros(50), np.full(50, 20)], atol=1e-5)
    np.testing.assert_allclose(w, 20 * 4 / 3, rtol=1e-5)
    np.testing.assert_allclose(left, (40 - 20 * 4 / 3) / 2, rtol=1e-5)


def test_erase_masks_have_their_distribution():
    u = jax.random.uniform(KEY, (5000, 22))
    masks = np.asarray(jax.jit(jax.vmap(lambda u: augment.erase_mask(u, 32)))(u))[..., 0]
    rows, columns = masks.any(2).sum(1), masks.any(1).sum(1)
    np.testing.assert_array_equal(masks.sum((1, 2)), rows * columns)  # a rectangle
    assert (rows > 0).all() and rows.max() < 32 and columns.max() < 32
    share, ratio = rows * columns / 32**2, rows / columns
    # Rounding to whole pixels moves both slightly out of range.
    assert 0.012 < share.min() < 0.03 and 0.31 < share.max() < 0.36
    assert 0.26 < ratio.min() < 0.35 and 2.9 < ratio.max() < 3.8
    assert share.mean() == pytest.approx(0.175, abs=0.01)
    for edge in (masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]):
        assert edge.any()


@pytest.mark.parametrize("height, width, distortion", [(9, 12, 0.5), (6, 6, 1.0)])
def test_perspective_corners_have_their_distribution(height, width, distortion):
    """Each coordinate is uniform over the integers of RandomPerspective.get_params."""
    u = jax.random.uniform(KEY, (6000, 8))
    got = np.asarray(jax.vmap(lambda u: augment.moved_corners(u, height, width, distortion))(u), np.float64)
    dx, dy = int(distortion * (width // 2)), int(distortion * (height // 2))
    left, right = range(dx + 1), range(width - dx - 1, width)  # as torch.randint draws them
    top, bottom = range(dy + 1), range(height - dy - 1, height)
    for corner, (xs, ys) in enumerate([(left, top), (right, top), (right, bottom), (left, bottom)]):
        for axis, values in enumerate((xs, ys)):
            found, counts = np.unique(got[:, corner, axis], return_counts=True)
            np.testing.assert_array_equal(found, values)
            expected = 6000 / len(values)
            assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)
    columns = got.reshape(6000, 8).T
    assert np.abs(np.corrcoef(columns) - np.eye(8)).max() < 0.07  # independent coordinates
