"""The quickstart: scikit-learn's 1,797 digits, trained by whether a digit has a closed loop, judged by which it is.

    python experiments/train.py --config=configs/digits.py:method=grafit --workdir=runs/digits

About half a minute on 2 cores. Two coarse labels (loop: 0 6 8 9; none: 1 2 3 4 5 7), ten fine ones, half of the
images for training. Numbers to expect: the first table of the README. All methods share everything else. ClusterFit
starts from a finished baseline: `method=clusterfit,init=runs/baseline`; about 30 images in a cluster.
"""

from grafit_jax import config_files, methods


def get_config(arg=None):
    c, arg = config_files.start(arg, method="grafit", seed=0, init="")
    c.data.source = "digits"
    c.clusterfit.source = arg.init
    c.clusterfit.num_clusters = 30
    c.model.trunk = "resnet8"
    c.model.head_hidden_dim = 256
    c.model.embed_dim = 128
    c.views.num_views = 2
    c.views.size = 8
    c.views.mean = (0.306,)
    c.views.std = (0.377,)
    c.views.crop_scale = (0.5, 1.0)
    c.views.flip_prob = 0.0  # a mirrored digit is another sign
    if methods.get(c.method).uses_queue:  # keys are seen as queries are
        c.key_views.crop_scale = c.views.crop_scale
        c.key_views.flip_prob = c.views.flip_prob
    c.ema.base = 0.99
    c.optimizer.learning_rate = 0.3
    c.optimizer.warmup_epochs = 2.0
    c.train.epochs = 60
    c.train.batch_size = 128
    c.checkpoint.every_epochs = 20
    return c


def sweep():
    """Methods and seeds of the README's first table."""
    for method in ("baseline", "baseline_mlp", "grafit"):
        for seed in range(3):
            yield {"method": method, "seed": seed}
