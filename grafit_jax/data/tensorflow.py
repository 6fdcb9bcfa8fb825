"""TensorFlow and TFDS, which are imported by the first call that needs them."""

import contextlib
import os
import pathlib

from grafit_jax.errors import UserError


def write(builder) -> pathlib.Path:
    """Prepares a data set from the files that its builder reads, and returns its folder; one that is there stays.

    Raises:
      UserError: it cannot be written.
    """
    tf, tfds = import_tfds()
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except (OSError, tf.errors.OpError) as error:
        raise UserError(
            f"cannot write {builder.data_dir} ({' '.join(str(error).split())}): take another --data_dir."
        ) from error
    return pathlib.Path(builder.data_dir)


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
