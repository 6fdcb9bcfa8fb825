"""A ResNet's tensors under torchvision's names, from a seed: written here so that no PyTorch is needed to make them."""

import hashlib

import numpy as np

LAYOUTS = {
    "resnet18": ((2, 2, 2, 2), (3, 3)),
    "resnet34": ((3, 4, 6, 3), (3, 3)),
    "resnet50": ((3, 4, 6, 3), (1, 3, 1)),
}


def state_dict(name, *, num_classes=10):
    """Every tensor has a generator of its own, keyed by its name, so that their order does not matter."""
    sizes, kernels = LAYOUTS[name]
    expansion = 4 if len(kernels) == 3 else 1
    tensors = {}

    def draw(key, *shape):
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little")
        return np.random.default_rng(seed).normal(size=shape).astype(np.float32)

    def conv(key, out, into, kernel):
        weight = draw(f"{key}.weight", out, into, kernel, kernel) * np.sqrt(2 / (into * kernel**2))
        tensors[f"{key}.weight"] = weight.astype(np.float32)

    def norm(key, width):
        # No two of the four are alike, none is what it is in a fresh network, and variances are positive.
        tensors[f"{key}.weight"] = 0.7 + 0.2 * draw(f"{key}.weight", width)
        tensors[f"{key}.bias"] = 0.1 * draw(f"{key}.bias", width)
        tensors[f"{key}.running_mean"] = 0.2 * draw(f"{key}.running_mean", width)
        tensors[f"{key}.running_var"] = 1 + 0.5 * np.abs(draw(f"{key}.running_var", width))
        tensors[f"{key}.num_batches_tracked"] = np.array(7)

    conv("conv1", 64, 3, 7)
    norm("bn1", 64)
    into = 64
    for stage, size in enumerate(sizes):
        width = 64 * 2**stage
        for block in range(size):
            prefix = f"layer{stage + 1}.{block}"
            channels = [into] + [width] * (len(kernels) - 1) + [width * expansion]
            for i, kernel in enumerate(kernels):
                conv(f"{prefix}.conv{i + 1}", channels[i + 1], channels[i], kernel)
                norm(f"{prefix}.bn{i + 1}", channels[i + 1])
            if block == 0 and into != width * expansion:
                conv(f"{prefix}.downsample.0", width * expansion, into, 1)
                norm(f"{prefix}.downsample.1", width * expansion)
            into = width * expansion
    tensors["fc.weight"] = draw("fc.weight", num_classes, into) / np.float32(np.sqrt(into))
    tensors["fc.bias"] = draw("fc.bias", num_classes)
    return tensors


def images(size=64):
    """float32 [2, size, size, 3]."""
    return np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
