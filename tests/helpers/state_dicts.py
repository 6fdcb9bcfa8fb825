"""Random tensors of trunks under torchvision's or timm's names, made without PyTorch."""

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
}
# Kernel, blocks, expansion and width of each stage, as in timm.
EFFICIENTNETS = {
    "tf_efficientnet_lite0": (
        (3, 1, 1, 16), (3, 2, 6, 24), (5, 2, 6, 40), (3, 3, 6, 80), (5, 3, 6, 112), (5, 4, 6, 192), (3, 1, 6, 320),
    ),
}  # fmt: skip
# Patch, width, blocks and registers (None = the supervised layout) of small transformers, as timm would name them.
VITS = {"vit": (4, 16, 2, None), "vit_dinov2": (4, 16, 2, 0), "vit_reg4_dinov2": (4, 16, 2, 4)}


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
    """Returns the tensors of a key of RESNETS, REGNETS or EFFICIENTNETS."""
    tensors = Tensors()
    if name in EFFICIENTNETS:
        tensors.linear("classifier", num_classes, _efficientnet(tensors, EFFICIENTNETS[name]))
        return tensors
    into = _resnet(tensors, *RESNETS[name]) if name in RESNETS else _regnet(tensors, *REGNETS[name])
    tensors.linear("fc", num_classes, into)
    return tensors


def vit_dict(name, side, *, num_classes=10):
    """Returns the tensors of a key of VITS, with positions of a grid of side x side patches."""
    patch, width, blocks, registers = VITS[name]
    tensors = Tensors()

    def any_of(key, *shape, mean=0.0, std=0.5):
        tensors[key] = np.float32(mean) + np.float32(std) * tensors.draw(key, *shape)

    any_of("cls_token", 1, 1, width)
    if registers:
        any_of("reg_token", 1, registers, width)
    any_of("pos_embed", 1, side * side + (not registers), width)
    any_of("patch_embed.proj.weight", width, 3, patch, patch, std=0.2)
    any_of("patch_embed.proj.bias", width)
    for i in range(blocks):
        prefix = f"blocks.{i}"
        for norm in ("norm1", "norm2"):
            any_of(f"{prefix}.{norm}.weight", width, mean=1.0, std=0.3)
            any_of(f"{prefix}.{norm}.bias", width)
        linear = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
        for key, (out, into) in linear.items():
            any_of(f"{prefix}.{key}.weight", out * width, into * width, std=0.4)
            any_of(f"{prefix}.{key}.bias", out * width)
        for scale in ("ls1", "ls2") if registers is not None else ():
            any_of(f"{prefix}.{scale}.gamma", width, mean=0.5, std=0.3)
    any_of("norm.weight", width, mean=1.0, std=0.3)
    any_of("norm.bias", width)
    if num_classes:
        tensors.linear("head", num_classes, width)
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


def _efficientnet(tensors, stages):
    tensors.conv("conv_stem", 32, 3, 3)
    tensors.norm("bn1", 32)
    into = 32
    for stage, (kernel, blocks, expansion, width) in enumerate(stages):
        for block in range(blocks):
            prefix, inner = f"blocks.{stage}.{block}", into * expansion
            layers = [("conv_dw", inner, 1, kernel), ("conv_pwl", width, inner, 1)]
            if expansion > 1:
                layers.insert(0, ("conv_pw", inner, into, 1))
            else:
                layers[-1] = ("conv_pw", width, inner, 1)
            for i, (name, *shape) in enumerate(layers, 1):
                tensors.conv(f"{prefix}.{name}", *shape)
                tensors.norm(f"{prefix}.bn{i}", shape[0])
            into = width
    tensors.conv("conv_head", 1280, into, 1)
    tensors.norm("bn2", 1280)
    return 1280


def images(size=64):
    """Returns float32 [2, size, size, 3]."""
    return np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
