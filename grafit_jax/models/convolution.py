"""The convolution of all trunks, in the form that each kind of device runs best."""

import jax
import jax.numpy as jnp
from jax import Array, lax

# On CPU: images that a kernel's gradient is summed over at a time.
_IMAGES = 32


def conv_general_dilated(x: Array, kernel: Array, *args, **options) -> Array:
    """`lax.conv_general_dilated` over the batch axis 0; what `nn.Conv` calls.

    On CPU the gradient of the kernel is computed for 32 images at a time and added up: XLA transposes image and batch
    axes for it, and out of the cache that made a whole step of a ResNet-18 at batch 128 1.4 times slower
    (`experiments/benchmark.py --suite=train --entries=convolution`).
    """

    def convolve(x, kernel):
        return lax.conv_general_dilated(x, kernel, *args, **options)

    if jax.default_backend() != "cpu" or len(x) <= _IMAGES:
        return convolve(x, kernel)

    @jax.custom_vjp
    def convolve_in_parts(x, kernel):
        return convolve(x, kernel)

    def forward(x, kernel):
        return convolve(x, kernel), (x, kernel)

    def backward(residuals, cotangent):
        x, kernel = residuals
        [x_gradient] = jax.vjp(lambda x: convolve(x, kernel), x)[1](cotangent)
        kernel_gradient = jnp.zeros(kernel.shape, jnp.float32)
        for start in range(0, len(x), _IMAGES):
            part = slice(start, start + _IMAGES)
            _, pull = jax.vjp(lambda kernel, part=part: convolve(x[part], kernel), kernel)
            kernel_gradient += pull(cotangent[part])[0].astype(jnp.float32)
        return x_gradient, kernel_gradient.astype(kernel.dtype)

    convolve_in_parts.defvjp(forward, backward)
    return convolve_in_parts(x, kernel)
