"""Random tensors of trunks under torchvision's names, made without PyTorch."""

import hashlib

import numpy as np

# Blocks per stage, and kernel sizes of a block.
RESNETS = {
    "resnet18": ((2, 2, 2, 2), (3, 3)),
    "resnet34": ((3, 4, 6, 3), (3, 3)),
    "resnet50": ((3, 4, 6, 3), (1, 3, 1)),
}
# Blocks and width of each stage, and group width, as in torchvision.
REGNETS = {
    "regnet_y_400mf": ((1, 3, 6, 6), (48, 104, 208, 440), 8),
    "regnet_y_8gf": ((2, 4, 10, 1), (224, 448, 896, 2016), 56),
}


class Tensors(dict):
    """Tensors drawn from generators that are seeded by the tensor's name, so that their order has no effect."""

    def draw(self, key, *shape):
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little")
        return np.random.default_rng(seed).standard_normal(shape, np.float64).astype(np.float32)

    def conv(self, key, out, into, kernel):
        weight = self.draw(f"{key}.weight", out, into, kernel, kernel) * np.sqrt(2 / (into * kernel**2))
        self[f"{key}.weight"] = weight.astype(np.float32)

    def norm(self, key, width):
        # All four differ from each other and from an initial network, and variances are positive.
        self[f"{key}.weight"] = 0.7 + 0.2 * self.draw(f"{key}.weight", width)
        self[f"{key}.bias"] = 0.1 * self.draw(f"{key}.bias", width)
        self[f"{key}.running_mean"] = 0.2 * self.draw(f"{key}.running_mean", width)
        self[f"{key}.running_var"] = 1 + 0.5 * np.abs(self.draw(f"{key}.running_var", width))
        self[f"{key}.num_batches_tracked"] = np.array(7)

    def linear(self, key, out, into):
        self[f"{key}.weight"] = self.draw(f"{key}.weight", out, into) / np.float32(np.sqrt(into))
        self[f"{key}.bias"] = self.draw(f"{key}.bias", out)


def state_dict(name, *, num_classes=10):
    """Returns the tensors of a key of RESNETS or REGNETS."""
    tensors = Tensors()
    into = _resnet(tensors, *RESNETS[name]) if name in RESNETS else _regnet(tensors, *REGNETS[name])
    tensors.linear("fc", num_classes, into)
    return tensors


def _resnet(tensors, sizes, kernels):
    expansion = 4 if len(kernels) == 3 else 1
    tensors.conv("conv1", 64, 3, 7)
    tensors.norm("bn1", 64)
    into = 64
    for stage, size in enumerate(sizes):
        width = 64 * 2**stage
        for block in range(size):
            prefix = f"layer{stage + 1}.{block}"
            channels = [into] + [width] * (len(kernels) - 1) + [width * expansion]
            for i, kernel in enumerate(kernels):
                tensors.conv(f"{prefix}.conv{i + 1}", channels[i + 1], channels[i], kernel)
                tensors.norm(f"{prefix}.bn{i + 1}", channels[i + 1])
            if block == 0 and into != width * expansion:
                tensors.conv(f"{prefix}.downsample.0", width * expansion, into, 1)
                tensors.norm(f"{prefix}.downsample.1", width * expansion)
            into = width * expansion
    return into


def _regnet(tensors, sizes, widths, group_width):
    def conv_norm(key, out, into, kernel):
        tensors.conv(f"{key}.0", out, into, kernel)
        tensors.norm(f"{key}.1", out)

    conv_norm("stem", 32, 3, 3)
    into = 32
    for stage, (size, width) in enumerate(zip(sizes, widths, strict=True), 1):
        for block in range(size):
            prefix = f"trunk_output.block{stage}.block{stage}-{block}"
            conv_norm(f"{prefix}.f.a", width, into, 1)
            conv_norm(f"{prefix}.f.b", width, group_width, 3)
            squeezed = round(into / 4)
            for key, out, of in (("fc1", squeezed, width), ("fc2", width, squeezed)):
                tensors.conv(f"{prefix}.f.se.{key}", out, of, 1)
                tensors[f"{prefix}.f.se.{key}.bias"] = 0.3 * tensors.draw(f"{prefix}.f.se.{key}.bias", out)
            conv_norm(f"{prefix}.f.c", width, width, 1)
            if block == 0:
                conv_norm(f"{prefix}.proj", width, into, 1)
            into = width
    return into


def images(size=64):
    """Returns float32 [2, size, size, 3]."""
    return np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
