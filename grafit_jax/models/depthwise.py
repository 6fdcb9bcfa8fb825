"""Depthwise convolution as a sum of shifted products: on CPU many times as fast as XLA's grouped convolution."""

import functools
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

Pads = tuple[tuple[int, int], tuple[int, int]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(images: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    """Convolves each channel with its own filter.

    It equals `lax.conv_general_dilated` with `feature_group_count=C`, and so do its gradients. All of them run image by
    image, so that an image and its products stay in a core's caches (`experiments/benchmark.py --suite=train
    --entries=depthwise,depthwise_gradient`).

    Args:
      images: float [B, H, W, C].
      kernel: float [h, w, 1, C].
      stride: of both sides.
      pads: zeros added before and after each side.

    Returns:
      float [B, H', W', C].
    """
    return lax.map(lambda image: _convolve(image, kernel[:, :, 0], stride, pads), images)


def _forward(images: Array, kernel: Array, stride: int, pads: Pads) -> tuple[Array, Any]:
    return depthwise_conv(images, kernel, stride, pads), (images, kernel)


def _backward(stride: int, pads: Pads, saved: tuple[Array, Array], gradients: Array) -> tuple[Array, Array]:
    images, kernel = saved
    flipped = kernel[::-1, ::-1, 0]
    # The gradient of the images is a convolution of the gradients, with stride - 1 zeros between them.
    before = [size - 1 - low for size, (low, _) in zip(kernel.shape, pads, strict=False)]
    sides = zip(images.shape[1:], kernel.shape, before, gradients.shape[1:], strict=False)
    after = [side + size - 1 - low - ((number - 1) * stride + 1) for side, size, low, number in sides]
    around = [(low, high, stride - 1) for low, high in zip(before, after, strict=True)]
    ones = jnp.ones((1, gradients.shape[1] * gradients.shape[2]), jnp.float32)  # a matrix product adds up faster

    def of_image(total: Array, one: tuple[Array, Array]) -> tuple[Array, Array]:
        image, gradient = one
        spread = lax.pad(gradient, jnp.zeros((), gradient.dtype), [*around, (0, 0, 0)])
        products = (part.astype(jnp.float32) * gradient for _, _, part in _shifts(image, kernel.shape, stride, pads))
        sums = jnp.concatenate([ones @ product.reshape(-1, product.shape[-1]) for product in products])
        return total + sums, _convolve(spread, flipped, 1, ((0, 0), (0, 0)))

    height, width, _, channels = kernel.shape
    zeros = jnp.zeros((height * width, channels), jnp.float32)
    of_kernel, of_images = lax.scan(of_image, zeros, (images, gradients))
    return of_images, of_kernel.reshape(kernel.shape).astype(kernel.dtype)


depthwise_conv.defvjp(_forward, _backward)


def _convolve(image: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    """[H, W, C] and [h, w, C] -> [H', W', C]."""
    products = (part * kernel[i, j] for i, j, part in _shifts(image, kernel.shape, stride, pads))
    return functools.reduce(operator.add, products)


def _shifts(image: Array, size: tuple[int, ...], stride: int, pads: Pads) -> Iterator[tuple[int, int, Array]]:
    """Yields i, j and the pixels [H', W', C] that entry (i, j) of a kernel is multiplied with."""
    image = jnp.pad(image, (*pads, (0, 0)))
    height, width = ((side - part) // stride + 1 for side, part in zip(image.shape, size[:2], strict=False))
    for i in range(size[0]):
        for j in range(size[1]):
            end = (i + (height - 1) * stride + 1, j + (width - 1) * stride + 1, image.shape[2])
            yield i, j, lax.slice(image, (i, j, 0), end, (stride, stride, 1))
