"""TensorFlow and TFDS, which are imported by the first call that needs them."""

import contextlib
import os


def import_tfds():
    """TensorFlow and TFDS."""
    # TensorFlow only decodes images here; the first setting silences its start, the second one a remark about oneDNN.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf
    import tensorflow_datasets as tfds

    tf.get_logger().setLevel("ERROR")  # TFDS's ids use something that TensorFlow calls deprecated
    # The accelerators are JAX's. Refused where TensorFlow is at work already: then it has taken what it takes.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")

    return tf, tfds
