"""Configs: typed arguments, unknown names, JSON, and the checks before a run."""

import dataclasses

import pytest

from grafit_jax import config as config_lib
from grafit_jax import config_checks, config_files, presets
from grafit_jax.errors import UserError
from grafit_jax.views import augment
from helpers.command_lines import ROOT
from helpers.runs import small_config

CONFIG_FILES = sorted((ROOT / "configs").glob("*.py"))


def test_arguments_are_typed_like_their_defaults():
    arg = config_files.parse_arg("b=2,c=0.5,d=x", a=1, b=7, c=1.0, d="y", e=True)
    assert arg.to_dict() == {"a": 1, "b": 2, "c": 0.5, "d": "x", "e": True}
    assert config_files.parse_arg("c=2,e=false", c=1.0, e=True).to_dict() == {"c": 2.0, "e": False}
    assert config_files.parse_arg(None, a=1).to_dict() == {"a": 1}


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("methd=grafit", r"'methd' \(did you mean 'method'\?\).*method, seed"),
        ("seed=1.5", r"found config argument seed=1\.5; expected a value of type int, such as 0"),
        ("seed=x", r"seed=x; expected a value of type int"),
        ("seed", r"found config argument 'seed' without a value; use seed=VALUE"),
        (
            "method=a,b",
            r"'b'; expected key=value with a key of method, seed; use a flag, .*data\.source=VALUE, for .* comma",
        ),
        ("seed=True", r"seed=True; expected a value of type int"),
    ],
)
def test_an_invalid_argument_is_an_error(arg, message):
    with pytest.raises(UserError, match=message):
        config_files.parse_arg(arg, method="grafit", seed=0)


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda p: p.stem)
def test_every_config_file_and_its_default_config_are_valid(path):
    # test_sweep_expansion.py validates the points of its sweep.
    module = config_files.load_module(path)
    assert (module.__doc__ or "").strip(), "a config file has a docstring"
    config = module.get_config()
    config_checks.validate(presets.assumed(config), num_devices=1)
    with pytest.raises((AttributeError, KeyError)):
        config.optimizer.learnin_rate = 1.0  # locked


@pytest.mark.parametrize(("name", "dataset"), [("transfer", "flowers"), ("maskcon", "cars")])
def test_a_preset_for_one_data_set_is_an_error_with_another(name, dataset):
    module = config_files.load_module(next(path for path in CONFIG_FILES if path.stem == name))
    with pytest.raises(
        UserError, match=rf"found preset=cpu with dataset={dataset}; expected dataset=cifar100; remove preset=cpu"
    ):
        module.get_config(f"preset=cpu,dataset={dataset}")


def test_cifar100_presets_have_their_documented_values():
    module = config_files.load_module(ROOT / "configs" / "cifar100.py")
    paper = module.get_config("preset=paper")
    assert (paper.model.trunk, paper.model.stem, paper.views.num_views) == ("resnet50", "cifar", 8)
    assert (paper.train.epochs, paper.train.batch_size, paper.loss.temperature) == (600, 1024, 0.05)
    assert (paper.memory.momentum, paper.loss.instance_weight, paper.ema.base) == (0.5, 1.0, 0.996)
    assert (paper.optimizer.weight_decay, paper.model.dtype) == (5e-4, "bfloat16")
    assert (paper.views.randaugment_ops, paper.views.jitter, paper.views.grayscale_prob) == (
        2,
        (0.4, 0.4, 0.2, 0.1),
        0.2,
    )
    r18, short = module.get_config("preset=r18"), module.get_config("preset=r18_short")
    for config, epochs, views, every in ((r18, 200, 4, 20), (short, 50, 2, 10)):
        found = config.model.trunk, config.model.head_hidden_dim, config.model.dtype, config.train.batch_size
        assert found == ("resnet18", 4096, "bfloat16", 256) and config.views.jitter == (0.4, 0.4, 0.2, 0.1)
        assert (config.train.epochs, config.views.num_views, config.eval.every_epochs) == (epochs, views, every)
    with pytest.raises(UserError, match=r"unknown preset 'cpuu' \(did you mean 'cpu'\?\)"):
        module.get_config("preset=cpuu")


def test_photos_of_protocol_paper_and_of_transfer_are_cropped_to_224_of_256_pixels():
    files = {path.stem: config_files.load_module(path) for path in CONFIG_FILES}
    for name, arg in (
        ("imagenet", ""),
        ("inaturalist", ""),
        ("snca", "dataset=imagenet"),
        ("transfer", "dataset=cars"),
    ):
        config = files[name].get_config(arg)
        assert (config.data.image_size, config.data.resize_mode, config.views.size) == (256, "centre", 224), name
        assert (config.eval.crop, config.eval.resize, config.eval.size) == ("centre", 0, 0), name
        assert name == "transfer" or config.views.crop_scale == (0.08, 1.0), name
    large = files["transfer"].get_config("dataset=cars,size=384")
    assert large.data.image_size == 439 and large.eval.size == 384  # the ratio of 224 to 256
    cifar100 = files["transfer"].get_config("dataset=cifar100")
    assert (cifar100.views.size, cifar100.model.stem, cifar100.eval.crop) == (224, "imagenet", "whole")
    cpu = files["transfer"].get_config("dataset=cifar100,preset=cpu")
    assert (cpu.views.size, cpu.model.stem, cpu.views.mean) == (32, "patch2", (0.507, 0.487, 0.441))


@pytest.mark.parametrize(("method", "temperature"), [("maskcon", 0.1), ("spread", 0.5), ("ancor", 0.2)])
@pytest.mark.parametrize("file", ["digits", "own", "omniglot", "cifar100", "grocery", "maskcon"])
def test_recipe_of_a_method_with_a_queue(file, method, temperature):
    c = config_files.load_file(ROOT / "configs" / f"{file}.py", f"method={method}")
    assert (c.loss.temperature, c.model.head_batch_norm, c.ema.final) == (temperature, False, c.ema.base)
    if file != "maskcon":  # whose strong and weak views differ
        assert all(c.key_views[key] == c.views[key] for key in c.key_views)
    paper = config_files.load_file(ROOT / "configs" / f"{file}.py", "method=grafit")
    assert paper.model.head_batch_norm and paper.loss.temperature == 0.05


def test_maskcon_recipe_is_that_of_the_paper_summary_section_3():
    module = config_files.load_module(ROOT / "configs" / "maskcon.py")
    c = module.get_config("method=maskcon")
    assert (c.model.trunk, c.model.stem, c.model.head_hidden_dim, c.model.embed_dim) == ("resnet18", "cifar", 512, 256)
    assert not c.model.head_batch_norm
    # The published rate is 0.02 for batches of 128; the key is for 256 images.
    o = c.optimizer
    assert (o.learning_rate, o.momentum, o.nesterov, o.weight_decay, o.decay_all) == (0.04, 0.9, False, 5e-4, True)
    assert (o.warmup_epochs, c.train.epochs, c.train.batch_size, c.queue.size) == (5, 200, 128, 8192)
    assert (c.ema.base, c.ema.final, c.loss.temperature, c.loss.maskcon_temperature) == (0.99, 0.99, 0.1, 0.05)
    assert (c.views.size, c.views.crop_scale, c.views.flip_prob, c.views.autoaugment) == (
        32,
        (0.2, 1.0),
        0.5,
        "maskcon",
    )
    assert c.model.head_init == "pytorch"
    assert c.views.mean == (0.507, 0.487, 0.441) and c.views.std == (0.267, 0.256, 0.276)
    keys = c.key_views
    assert (keys.crop_scale, keys.flip_prob, keys.autoaugment, keys.perspective) == ((0.2, 1.0), 0.5, False, 0.0)
    assert c.eval.recall_at == (1, 2, 5, 10, 50, 100) and c.eval.every_epochs == 10
    assert c.eval.layers == ("trunk", "projector") and c.eval.crop == "whole"

    cars = module.get_config("dataset=cars,w=0.2,t=0.1")
    v, keys = cars.views, cars.key_views
    assert (v.size, v.perspective, v.perspective_prob, v.jitter, v.jitter_prob) == (
        224, 0.5, 0.5, (0.4, 0.4, 0.4, 0.1), 0.8
    )  # fmt: skip
    assert (v.grayscale_prob, v.blur, v.blur_prob, v.autoaugment) == (0.2, (0.1, 2.0), 0.5, False)
    assert (keys.perspective, keys.jitter, keys.grayscale_prob, keys.blur) == (0.5, (0.0,) * 4, 0.0, (0.0, 0.0))
    assert (cars.model.stem, cars.loss.maskcon_weight, cars.loss.maskcon_temperature) == ("imagenet", 0.2, 0.1)

    sop = module.get_config("dataset=sop,split=split2")
    assert sop.data.variant == "split2" and sop.views.perspective == sop.key_views.perspective == 0.5
    assert sop.views.jitter == (0.0,) * 4 and sop.views.blur == (0.0, 0.0)
    imagenet32 = module.get_config("dataset=imagenet32")
    assert (imagenet32.model.stem, imagenet32.views.autoaugment) == ("cifar", "maskcon")
    assert (imagenet32.queue.size, imagenet32.train.epochs, imagenet32.train.batch_size) == (16384, 100, 256)
    assert imagenet32.views.mean == (0.485, 0.456, 0.406)

    # Published w and t apply to their own method only; other methods use the middle of the sweep.
    for arg, w, t in (
        ("dataset=imagenet32,method=coins", 1.0, 0.05),
        ("dataset=sop,method=maskcon", 0.8, 0.1),
        ("dataset=cars,method=maskcon", 1.0, 0.1),
        ("dataset=cars,method=maskcon,w=0.2", 0.2, 0.1),
        ("dataset=sop,method=maskcon,split=split2", 0.5, 0.05),
        ("dataset=cars,method=grafit_maskcon", 0.5, 0.05),
        ("dataset=cifar100,method=maskcon", 0.5, 0.05),
    ):
        loss = module.get_config(arg).loss
        assert (loss.maskcon_weight, loss.maskcon_temperature) == (w, t), arg

    # The Grafit paper's methods keep their own temperature and heads in this setting.
    grafit = module.get_config("method=grafit")
    assert grafit.model.head_init == "lecun"
    assert grafit.loss.temperature == 0.05 and grafit.model.head_batch_norm and grafit.views.num_views == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method": "graft"}, r"unknown method 'graft' \(did you mean 'grafit'\?\); expected one of baseline"),
        ({"model.trunk": "resnet19"}, r"unknown model\.trunk 'resnet19' \(did you mean 'resnet18'\?\)"),
        ({"model.stem": "cifra"}, r"unknown model\.stem 'cifra' \(did you mean 'cifar'\?\)"),
        ({"model.dtype": "float16"}, r"unknown model\.dtype 'float16'"),
        ({"memory.init": "zero"}, r"unknown memory\.init 'zero'.*embed, random"),
        ({"model.head_init": "torch"}, r"unknown model\.head_init 'torch'.*lecun, pytorch"),
        ({"views.autoaugment": "cifar"}, r"views\.autoaugment = 'cifar'; expected one of False, True, 'maskcon'"),
        ({"key_views.autoaugment": 1}, r"key_views\.autoaugment = 1; expected one of False, True, 'maskcon'"),
        ({"eval.crop": "center"}, r"unknown eval\.crop 'center' \(did you mean 'centre'\?\)"),
        (
            {"method": "snca", "model.projector_norm": True},
            r"projector_norm = True; expected False, since snca has no",
        ),
        (
            {"eval.crop": "centre", "views.size": 14, "data.image_size": 15},
            r"data\.image_size = 15; expected .* at least 16",
        ),
        ({"eval.resize": 9}, r"eval\.resize = 9; expected 0 with eval\.crop = whole; use 0, or eval\.crop = centre"),
        (
            {"eval.crop": "centre", "eval.size": 9, "eval.resize": 8},
            r"eval\.resize = 8; expected 0 .* at least .* 9 pixels",
        ),
        ({"views.num_views": 1}, r"views\.num_views = 1; expected T >= 2"),
        ({"loss.temperature": 0.0}, r"loss\.temperature = 0\.0; expected sigma > 0"),
        ({"loss.temperature": -1.0}, r"loss\.temperature = -1\.0; expected sigma > 0"),
        ({"memory.momentum": 1.0}, r"memory\.momentum = 1\.0"),
        ({"train.epochs": 0}, r"train\.epochs = 0; expected at least 1"),
        ({"train.batch_size": 60}, r"train\.batch_size = 60; expected a multiple of the 8 devices; use 56 or 64"),
        ({"train.batch_size": 4}, r"train\.batch_size = 4; expected a multiple of the 8 devices; use 8"),
        ({"model.embed_dim": 0}, r"model\.embed_dim = 0; expected at least 1"),
        ({"model.head_hidden_dim": -1}, r"model\.head_hidden_dim = -1; expected at least 1"),
        ({"views.size": 9}, r"views\.size = 9; expected an even number for the stem patch2"),
        ({"loss.temperature": float("inf")}, r"loss\.temperature = inf; expected a finite number"),
        ({"loss.instance_weight": -1.0}, r"loss\.instance_weight = -1\.0; expected lambda >= 0"),
        ({"optimizer.weight_decay": -1.0}, r"optimizer\.weight_decay = -1\.0; expected 0 or more"),
        ({"optimizer.momentum": 1.5}, r"optimizer\.momentum = 1\.5; expected a value in \[0, 1\)"),
        ({"optimizer.warmup_epochs": -1.0}, r"optimizer\.warmup_epochs = -1\.0; expected 0 or more"),
        ({"eval.every_epochs": -1}, r"eval\.every_epochs = -1; expected 0"),
        ({"eval.recall_at": (1, 0)}, r"eval\.recall_at = \(1, 0\); expected integers k >= 1"),
        ({"eval.layers": ("trunk", "trunk")}, r"eval\.layers = .*each once"),
        ({"eval.layers": ()}, r"eval\.layers = \(\); expected trunk, projector or concat, each once"),
        ({"eval.layers": ("trunks",)}, r"'trunks' \(did you mean 'trunk'\?\)"),
        ({"method": "maskcon", "queue.size": 63}, r"queue\.size = 63; expected at least train\.batch_size = 64 keys"),
        ({"method": "snca", "loss.levels": ("fine", "fine")}, r"loss\.levels = .*names of levels, each once"),
        ({"method": "snca", "loss.levels": (1,)}, r"loss\.levels"),
        ({"method": "byol", "loss.levels": ("fine",)}, r"loss\.levels = .*expected empty, since byol has no k-NN loss"),
        (
            {"method": "snca", "loss.levels": ("coarse", "fine"), "loss.level_weights": (1.0,)},
            r"level_weights = \(1\.0,\); expected empty, or one weight for each of loss\.levels = \('coarse', 'fine'\)",
        ),
        ({"method": "snca", "loss.level_weights": (-1.0,)}, r"level_weights = \(-1\.0,\); expected weights >= 0"),
        ({"loss.maskcon_weight": 1.1}, r"loss\.maskcon_weight = 1\.1; expected w in \[0, 1\]"),
        ({"loss.maskcon_temperature": 0.0}, r"loss\.maskcon_temperature = 0\.0; expected t > 0"),
        ({"ema.final": 1.5}, r"ema\.final = 1\.5; expected a value in \[0, 1\]"),
        ({"loss.label_smoothing": 1.0}, r"loss\.label_smoothing = 1\.0; expected a value in \[0, 1\)"),
        ({"optimizer.layer_decay": 0.0}, r"optimizer\.layer_decay = 0\.0; expected a factor in \(0, 1\]"),
        ({"eval.knn_temperature": 0.0}, r"eval\.knn_temperature = 0\.0; expected sigma > 0"),
        ({"eval.knn_k": 0}, r"eval\.knn_k = 0; expected at least 1"),
        ({"eval.batch_size": 0}, r"eval\.batch_size = 0; expected at least 1"),
        ({"ema.base": -0.1}, r"ema\.base = -0\.1; expected a value in \[0, 1\]"),
        ({"optimizer.learning_rate": 0.0}, r"optimizer\.learning_rate = 0\.0; expected a value > 0"),
        ({"train.batch_size": 0}, r"train\.batch_size = 0; expected at least 1"),
        ({"train.steps_per_call": -1}, r"train\.steps_per_call = -1; expected 0"),
        ({"train.shuffle_buffer": 0}, r"train\.shuffle_buffer = 0; expected at least 1"),
        ({"checkpoint.every_epochs": 0}, r"checkpoint\.every_epochs = 0; expected at least 1"),
        ({"checkpoint.keep": 0}, r"checkpoint\.keep = 0; expected at least 1"),
        ({"data.on_unreadable": "skp"}, r"unknown data\.on_unreadable 'skp' \(did you mean 'skip'\?\)"),
        (
            {"method": "grafit_fc", "mixing.mixup": 0.2},
            r"mixup = 0\.2; expected 0, since cross-entropy is not the only loss of grafit_fc",
        ),
        ({"loss.label_smoothing": 0.1}, r"label_smoothing = 0\.1; expected 0, since the supervised loss of grafit"),
        ({"seed": -1}, r"seed = -1; expected 0 or more"),
        (
            {"seed": 2**32},
            r"seed = 4294967296; expected a number that fits into 32 bits",
        ),  # would have the draws of seed 0
        ({"eval.size": -2}, r"eval\.size = -2; expected 0"),
        ({"eval.size": 9}, r"eval\.size = 9; expected an even number for the stem patch2"),
        (
            {"model.trunk": "vit_small_patch16_224"},
            r"model\.stem = 'patch2'; expected imagenet with vit_small_patch16_224, whose stem is its patches",
        ),
        (
            {"model.trunk": "vit_small_patch14_dinov2", "model.stem": "imagenet", "views.size": 128},
            r"size = 128; expected a multiple of 14, the patch of vit_small_patch14_dinov2; use 126\.",
        ),
        (
            {"model.trunk": "vit_base_patch16_224", "model.stem": "imagenet", "views.size": 32, "eval.size": 5},
            r"eval\.size = 5; expected a multiple of 16, the patch of vit_base_patch16_224; use 16\.",
        ),
        (
            {"method": "baseline", "eval.layers": ("trunk",), "mixing.mixup": -1.0},
            r"mixing\.mixup = -1\.0; expected alpha",
        ),
        (
            {"mixing.cutmix": 1.0},
            r"mixing\.cutmix = 1\.0; expected 0, since cross-entropy is not the only loss of grafit",
        ),
        ({"data.image_size": -1}, r"data\.image_size = -1; expected 0"),
        (
            {"model.pretrained": "x.pth"},
            r"trunk with pretrained weights 'resnet8' \(did you mean 'resnet18'",
        ),
        ({"model.freeze": "3"}, r"model\.freeze = '3'; expected trunk, a number of blocks, 1 to 2 for resnet8, or ''"),
        ({"model.freeze": "0"}, r"model\.freeze = '0'; expected trunk, a number of blocks, 1 to 2"),
        ({"model.freeze": "trnk"}, r"model\.freeze = 'trnk'; expected trunk"),
        (
            {"method": "grafit_no_projector", "model.embed_dim": 64, "model.freeze": "trunk"},
            r"model\.freeze = 'trunk'; expected .* grafit_no_projector trains neither projector nor classifier",
        ),
        ({"model.drop_path": 1.0}, r"model\.drop_path = 1\.0; expected a value in \[0, 1\)"),
        ({"optimizer.name": "adam"}, r"unknown optimizer\.name 'adam' \(did you mean 'adamw'\?\)"),
        ({"optimizer.beta2": 1.0}, r"optimizer\.beta2 = 1\.0; expected a value in \[0, 1\)"),
        ({"train.microbatches": 0}, r"train\.microbatches = 0; expected at least 1"),
        (
            {"train.microbatches": 3},
            r"batch_size = 64; expected a multiple of 24, the number of devices \(8\) times train\.microbatches; "
            "use 48 or 72",
        ),
        (
            {"method": "baseline", "eval.layers": ("projector",)},
            r"expected trunk first, since baseline has no projector",
        ),
        # Values of another type.
        (
            {"data.coarse_classes": (0, 1.5)},
            r"data\.coarse_classes = \(0, 1\.5\); expected a value of type int, such as 0",
        ),
        ({"memory.step_epochs": ("a",)}, r"memory\.step_epochs = \('a',\); expected a value of type int, such as 40"),
        ({"data.source": "npz:a\0"}, r"data\.source = 'npz:a\\x00'; expected text without NUL"),
        ({"data.stream": 1}, r"data\.stream = 1; expected a value of type bool, such as False"),
        ({"model.embed_dim": True}, r"model\.embed_dim = True; expected a value of type int, such as 256"),
    ],
)
def test_an_invalid_config_is_an_error_before_a_run(overrides, message):
    config = small_config()
    with config.ignore_type():
        config.update_from_flattened_dict(overrides)
    with pytest.raises(UserError, match=message):
        config_checks.validate(config, num_devices=8)


def test_a_method_without_instance_loss_accepts_a_single_view():
    config_checks.validate(small_config("baseline", **{"views.num_views": 1}), num_devices=8)


def test_a_method_with_a_head_may_train_it_alone():
    for method in ("baseline", "snca", "grafit", "clusterfit"):
        options = {"model.freeze": "trunk", "clusterfit.source": "run", "clusterfit.num_clusters": 2}
        config_checks.validate(small_config(method, **options), num_devices=8)


def test_json_round_trip_and_differences():
    config = small_config(**{"eval.recall_at": (1, 3), "data.coarse_classes": (0, 1), "data.data_dir": "/a"})
    again = config_lib.from_json(config_lib.to_json(config))
    assert again.to_dict() == config.to_dict()
    assert config_lib.differences(config, again) == []
    again = small_config(**{"eval.recall_at": (1, 3), "data.coarse_classes": (0, 1), "data.data_dir": "/b"})
    assert config_lib.differences(config, again) == []
    again.unlock()
    again.seed = 5
    assert config_lib.differences(config, again) == ["seed: 0 -> 5"]


def test_an_unknown_or_missing_key_is_an_error():
    config = config_lib.default().unlock()
    config.train.epoch = 3
    with pytest.raises(UserError, match=r"unknown config key 'train\.epoch' \(did you mean 'train\.epochs'\?\)"):
        config_checks.validate(config, num_devices=1)
    del config.train.epoch, config.train.epochs
    with pytest.raises(UserError, match=r"found no config key 'train\.epochs'; use a config made by"):
        config_checks.validate(config, num_devices=1)


def test_augmentation_keys_are_the_options_of_views():
    config, fields = config_lib.default(), {field.name for field in dataclasses.fields(augment.Views)}
    assert {*config.key_views} == fields - {"size", "mean", "std", "resize"}
    assert {*config.views} == fields - {"resize"} | {"num_views"}
