"""Options of all trunks for fine-tuning: drop path, frozen blocks, frozen batch norms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grafit_jax.models import build_trunk
from grafit_jax.models.efficientnet import EfficientNetLite, Stage
from grafit_jax.models.layers import drop_path
from grafit_jax.models.regnet import RegNet
from grafit_jax.models.resnet import ResNet
from grafit_jax.models.vit import VisionTransformer

# Small trunks of three or four blocks, and the names of their blocks. The RegNet has stages of 1, 2 and 1 blocks.
STAGES = (Stage(1, 3, 1, 1, 8), Stage(2, 3, 2, 6, 16))
CONVOLUTIONAL = {
    "BasicBlock": functools.partial(ResNet, (1, 2), width=8, stem="cifar"),
    "BottleneckBlock": functools.partial(ResNet, (1, 2), bottleneck=True, width=8, stem="cifar"),
    "YBlock": functools.partial(RegNet, 4, 8, 6.0, 2.0, 8, stem="cifar"),
    "MBBlock": functools.partial(EfficientNetLite, STAGES, features=24, stem="cifar"),
}
SMALL = CONVOLUTIONAL | {"TransformerBlock": functools.partial(VisionTransformer, 4, 16, 2, depth=3, image_size=8)}
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)


@functools.cache
def variables(kind):
    """Returns variables of a small trunk, different from initial ones in each leaf."""
    trunk = SMALL[kind]()
    abstract = jax.eval_shape(lambda: trunk.init(jax.random.key(0), IMAGES, train=False))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        if path[-1].key == "kernel":  # keeps the size of activations
            return np.float32(rng.normal(size=leaf.shape) * np.prod(leaf.shape[:-1]) ** -0.5)
        around = 1.0 if path[-1].key in ("scale", "var") else 0.0
        return np.float32(around + 0.4 * rng.uniform(-1, 1, leaf.shape))

    return jax.tree.map_with_path(draw, abstract)


def in_training(kind, draws=None, **options):
    """Returns the features of a training pass and the batch statistics after it."""
    trunk = SMALL[kind](**options)
    out, updated = trunk.apply(variables(kind), IMAGES, train=True, draws=draws, mutable=["batch_stats"])
    return out, updated.get("batch_stats", {})


# Drop path.


def test_factors_of_drop_path_golden():
    # Rates of five blocks: 0, 0.1, 0.2, 0.3 and 0.4. A draw below the rate leaves the branch out.
    trunk = ResNet((1, 1, 2, 1), drop_path=0.4)
    draws = jnp.array([[0.0, 0.05, 0.2, 0.29, 0.9], [0.9, 0.15, 0.19, 0.31, 0.39]])
    found = [trunk.keep(block, draws) for block in range(5)]
    assert found[0] is None
    for factor, expected in zip(found[1:], ([0, 1 / 0.9], [1 / 0.8, 0], [0, 1 / 0.7], [1 / 0.6, 0]), strict=True):
        np.testing.assert_allclose(factor, expected, rtol=1e-6)
    assert all(trunk.keep(block, None) is None for block in range(5))
    assert all(ResNet((1, 1, 2, 1)).keep(block, draws) is None for block in range(5))
    frozen = ResNet((1, 1, 2, 1), drop_path=0.4, frozen_blocks=3)
    assert [frozen.keep(block, draws) is None for block in range(5)] == [True, True, True, False, False]
    assert ResNet((1,), drop_path=0.4).keep(0, draws) is None  # the first block is never left out


def test_the_mean_factor_of_drop_path_is_1():
    trunk = ResNet((2, 2), drop_path=0.5)
    draws = jax.random.uniform(jax.random.key(0), (10_000, 4))
    for block, rate in ((1, 1 / 6), (2, 1 / 3), (3, 1 / 2)):
        factor = trunk.keep(block, draws)
        assert np.mean(factor == 0) == pytest.approx(rate, abs=0.02)
        assert np.mean(factor) == pytest.approx(1, abs=0.04)
        np.testing.assert_allclose(np.unique(factor), [0, 1 / (1 - rate)], rtol=1e-6)


def test_a_factor_scales_the_whole_branch_of_its_example():
    branch = jnp.arange(1.0, 13.0).reshape(2, 3, 2)
    np.testing.assert_array_equal(drop_path(branch, jnp.array([0.0, 2.0])), [np.zeros((3, 2)), 2 * branch[1]])
    low = drop_path(branch.astype(jnp.bfloat16), jnp.array([1.0, 2.0]))
    assert low.dtype == jnp.bfloat16
    assert drop_path(branch, None) is branch


@pytest.mark.parametrize("kind", SMALL)
def test_a_dropped_branch_has_no_effect(kind):
    # Block 2 of each small trunk has the shape of its input, so that all its parameters are in the branch.
    trunk = SMALL[kind](drop_path=0.5)
    apply = jax.jit(functools.partial(trunk.apply, train=False))
    name, dropped = f"{kind}_2", jnp.ones((4, trunk.num_blocks)).at[:3, 2].set(0.0)
    params = variables(kind)["params"]
    other = {**variables(kind), "params": params | {name: jax.tree.map(lambda leaf: 1.5 * leaf, params[name])}}
    before, after = (apply(given, IMAGES, draws=dropped) for given in (variables(kind), other))
    np.testing.assert_array_equal(before[:3], after[:3])
    assert np.abs(before[3] - after[3]).max() > 1e-3  # the last image keeps the branch


@pytest.mark.parametrize("kind", SMALL)
def test_drop_path_has_no_effect_without_draws(kind):
    plain, dropping = (SMALL[kind](drop_path=rate).apply(variables(kind), IMAGES, train=False) for rate in (0.0, 0.5))
    np.testing.assert_array_equal(plain, dropping)


# Frozen batch norms.


def changed(kind, **options):
    """Returns the names of the layers whose batch statistics a training pass changes."""
    _, after = in_training(kind, **options)
    before = variables(kind)["batch_stats"]
    differs = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)
    for name, layer in differs.items():
        assert len({*jax.tree.leaves(layer)}) == 1, name  # all of a block, or none
    return {name for name, layer in differs.items() if any(jax.tree.leaves(layer))}


@pytest.mark.parametrize("kind", CONVOLUTIONAL)
def test_only_blocks_that_are_not_frozen_update_batch_statistics(kind):
    number = SMALL[kind]().num_blocks
    blocks = [f"{kind}_{i}" for i in range(number)]
    above = {"last_norm"} & set(variables(kind)["batch_stats"])
    assert bool(above) == (kind == "MBBlock")
    assert changed(kind) == {"BatchNorm_0", *blocks, *above}
    assert changed(kind, frozen_blocks=2) == {*blocks[2:], *above}
    assert changed(kind, frozen_blocks=number) == above
    assert changed(kind, freeze_batch_norm=True) == set()


@pytest.mark.parametrize("kind", CONVOLUTIONAL)
def test_frozen_batch_norms_use_the_running_statistics_in_training(kind):
    evaluated = SMALL[kind]().apply(variables(kind), IMAGES, train=False)
    np.testing.assert_array_equal(in_training(kind, freeze_batch_norm=True)[0], evaluated)
    free, _ = in_training(kind)
    assert not np.allclose(free, evaluated, rtol=1e-2)


def test_a_transformer_computes_the_same_in_training():
    evaluated = SMALL["TransformerBlock"]().apply(variables("TransformerBlock"), IMAGES, train=False)
    out, statistics = in_training("TransformerBlock", frozen_blocks=1)
    assert statistics == {}
    np.testing.assert_array_equal(out, evaluated)


@pytest.mark.parametrize("kind", SMALL)
def test_remat_and_drop_path_keep_the_names_of_variables(kind):
    trunk = SMALL[kind](remat=True, drop_path=0.3)
    draws = jnp.full((4, trunk.num_blocks), 0.5)
    found = jax.eval_shape(lambda: trunk.init(jax.random.key(0), IMAGES, train=True, draws=draws))
    assert jax.tree.structure(found) == jax.tree.structure(variables(kind))


def test_only_transformers_have_a_patch():
    multiples = {stem: build_trunk("resnet18", stem=stem).multiple for stem in ("imagenet", "cifar", "patch2")}
    assert multiples == {"imagenet": 1, "cifar": 1, "patch2": 2}
    assert build_trunk("vit_base_patch14_dinov2").multiple == 14
