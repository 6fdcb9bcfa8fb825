"""Depthwise convolutions on CPU: values and gradients equal those of XLA's grouped convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from grafit_jax.models import layers
from grafit_jax.models.depthwise import depthwise_conv


def grouped(images, kernel, stride, pads):
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), pads, feature_group_count=images.shape[-1],
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "size", "stride", "dtype", "pads"),
    [
        ((3, 8, 8, 5), 3, 1, "float32", "SAME"),
        ((3, 8, 8, 5), 3, 2, "float32", "SAME"),  # pads (0, 1)
        ((2, 7, 10, 4), 3, 2, "float32", "SAME"),  # pads (1, 1) and (0, 1)
        ((2, 9, 6, 4), 5, 1, "float32", "SAME"),
        ((2, 11, 8, 4), 5, 2, "float32", "SAME"),  # pads (2, 2) and (1, 2)
        ((1, 7, 7, 3), 5, 2, "float32", "SAME"),
        ((1, 5, 3, 1), 3, 1, "float32", "SAME"),  # one image of one channel
        ((2, 2, 1, 3), 5, 2, "float32", "SAME"),  # less than a kernel
        ((2, 8, 7, 3), 3, 2, "float32", ((2, 0), (0, 3))),
        ((2, 8, 7, 3), 3, 2, "float32", ((0, 0), (0, 0))),  # the last row of pixels has no product
        ((3, 8, 9, 5), 3, 2, "bfloat16", "SAME"),
    ],
)
def test_values_and_gradients_equal_the_grouped_convolutions(shape, size, stride, dtype, pads):
    keys = jax.random.split(jax.random.key(0), 3)
    images = jax.random.normal(keys[0], shape, dtype)
    kernel = jax.random.normal(keys[1], (size, size, 1, shape[-1]), dtype)
    if pads == "SAME":
        pads = tuple(lax.padtype_to_pads(shape[1:3], (size, size), (stride, stride), pads))

    @functools.partial(jax.jit, static_argnums=0)
    def with_gradients(convolve, images, kernel, cotangent):
        out, pull = jax.vjp(lambda x, k: convolve(x, k, stride, pads), images, kernel)
        return out, *pull(cotangent)

    like = jax.eval_shape(lambda: grouped(images, kernel, stride, pads))
    cotangent = jax.random.normal(keys[2], like.shape, dtype)
    found = with_gradients(depthwise_conv, images, kernel, cotangent)
    wanted = with_gradients(grouped, *(x.astype(jnp.float32) for x in (images, kernel, cotangent)))
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == dtype
        atol = tolerance * np.abs(theirs).max()
        np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, atol=atol)


def test_golden():
    # Each channel has its own kernel: the sum of all taps, and the centre times 2.
    images = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1) * jnp.ones(2)
    kernel = jnp.zeros((3, 3, 1, 2)).at[..., 0].set(1.0).at[1, 1, 0, 1].set(2.0)
    out = depthwise_conv(images, kernel, 1, ((1, 1), (1, 1)))[0]
    np.testing.assert_array_equal(out[..., 0], [[12, 21, 16], [27, 45, 33], [24, 39, 28]])
    np.testing.assert_array_equal(out[..., 1], [[2, 4, 6], [8, 10, 12], [14, 16, 18]])
    strided = depthwise_conv(images, kernel, 2, ((1, 1), (1, 1)))[0]
    np.testing.assert_array_equal(strided[..., 0], [[12, 16], [24, 28]])
    one_sided = depthwise_conv(images, kernel, 2, ((0, 1), (1, 0)))[0]  # below and left of the image
    np.testing.assert_array_equal(one_sided[..., 0], [[1 + 2 + 4 + 5 + 7 + 8]])


@pytest.mark.parametrize(
    ("backend", "channels", "groups", "expected"),
    [("cpu", 4, 4, True), ("gpu", 4, 4, False), ("cpu", 4, 2, False), ("cpu", 1, 1, False)],
)
def test_the_convolutions_of_trunks_use_it_on_cpu_only(backend, channels, groups, expected, monkeypatch):
    calls = []

    def spy(*arguments):
        calls.append(arguments[2:])
        return depthwise_conv(*arguments)

    monkeypatch.setattr(layers, "depthwise_conv", spy)
    layer = layers.conv(channels, (3, 3), strides=2, padding="SAME", feature_group_count=groups)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, channels))
    variables = layer.init(jax.random.key(1), images)
    calls.clear()
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    out = layer.apply(variables, images)
    assert calls == ([(2, ((0, 1), (0, 1)))] if expected else [])
    if groups == channels:
        theirs = grouped(images, variables["params"]["kernel"], 2, ((0, 1), (0, 1)))
        np.testing.assert_allclose(out, theirs, atol=1e-5)
