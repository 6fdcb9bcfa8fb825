"""A lazy import of TensorFlow and TFDS."""

import contextlib
import os

from grafit_jax.errors import UserError, install


def import_tfds(where: str = "TFDS data sets"):
    """Returns the modules (tensorflow, tensorflow_datasets).

    Args:
      where: what needs them, for the message.

    Raises:
      UserError: TensorFlow is not installed.
    """
    # Silence TensorFlow's start-up log and its notice about oneDNN; it only decodes images here.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":  # a broken installation
            raise
        raise UserError(f"{where}: found no TensorFlow; use `{install('tfds')}`.") from None
    import tensorflow_datasets as tfds

    tf.get_logger().setLevel("ERROR")  # TFDS's ids trigger a deprecation warning
    # Keep the GPUs for JAX. TensorFlow refuses once it is initialised; it has its memory by then.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")

    return tf, tfds
