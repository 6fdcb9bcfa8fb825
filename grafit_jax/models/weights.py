"""Loading of weights of torchvision and timm."""

import io
import os
import pathlib
import pickletools
import zipfile
from collections.abc import Mapping, Sequence
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from grafit_jax.errors import UserError, reading
from grafit_jax.models.trunks import build, build_trunk

# File types of `read`.
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")

# Last part of a variable's path -> torchvision's name, where they differ.
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# Maximum number of characters of a tensor's name, or of any other pickled string.
_LONGEST = 1000


def convert(name: str, state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Converts the tensors of a network of torchvision or timm to the variables of `build(name, num_classes=...)`.

    Args:
      name: see `build`.
      state_dict: numpy arrays of any float type under their names. The classifier's bias has the number of classes;
        there are none without it.

    Returns:
      {"params": ..., "batch_stats": ...}, float32 numpy arrays; no "batch_stats" without batch norms.

    Raises:
      UserError: a tensor is missing, unexpected, of another shape, not floating point or not finite.
    """
    trunk = build_trunk(name)
    state_dict = trunk.adapt(state_dict)
    bias = state_dict.get(f"{trunk.torch_head}.bias")
    return _fill(name, 0 if bias is None else np.size(bias), state_dict)


def load_trunk(path: str | pathlib.Path, name: str, *, stem: str) -> dict[str, Any]:
    """Loads the variables of a trunk from a file, to start training from.

    The file's classifier is ignored. The convolution of a stem other than "imagenet" is not among the variables, since
    it starts from scratch; the stem's batch norm is pretrained, as in MaskCon's code.

    Args:
      path: see `read`.
      name: see `build`.
      stem: see `ResNet`.

    Returns:
      {"params": ..., "batch_stats": ...} of the trunk, float32 numpy arrays; no "batch_stats" without batch norms.

    Raises:
      UserError: see `read` and `convert`.
    """
    trunk = build_trunk(name, stem=stem)
    head = f"{trunk.torch_head}."
    state_dict = {key: value for key, value in trunk.adapt(read(path)).items() if not key.startswith(head)}
    # Conv_0 at this level is the stem's; the convolutions of blocks are one level deeper.
    fresh = () if stem == "imagenet" else ("Conv_0",)
    try:
        variables = _fill(name, 0, state_dict, fresh)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return {collection: tree["trunk"] for collection, tree in variables.items()}


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a .safetensors file, or of a .pth, .pt or .bin state dict, which needs PyTorch.

    Only tensors are unpickled. A state dict inside "state_dict" or "model" is unwrapped, and DataParallel's prefix
    "module." is removed.

    Args:
      path: the file; "~" is the home directory.

    Returns:
      numpy arrays by tensor name.

    Raises:
      UserError: the file is missing, damaged or of another type, or PyTorch is not installed.
    """
    path = pathlib.Path(os.path.expanduser(path))
    if not os.path.isfile(path):
        raise UserError(f"found no file {path}; expected a .safetensors or .pth file of weights.")
    if path.suffix not in WEIGHTS:
        raise UserError(f"{path}: found file type {path.suffix!r}; expected a .safetensors or .pth file of weights.")
    if path.suffix == ".safetensors":
        with reading(path, "download it again"):
            tensors = safetensors.numpy.load_file(path)
    else:
        tensors = _read_pth(path)
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def _read_pth(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: found no PyTorch to read it; use `pip install torch`, or convert the file to .safetensors "
            "(safetensors.torch.save_file)."
        ) from None
    with reading(path, "expected a state dict of tensors, as `torch.save(net.state_dict(), ...)` writes it"):
        _check_cost(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in ("state_dict", "model"):
            if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
                content = content[wrapper]
        if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
            raise UserError(
                f"{path}: found no state dict; expected tensors by name, as `torch.save(net.state_dict(), ...)` writes."
            )
        for key, tensor in content.items():
            # A stride of 0 turns a few bytes into gigabytes.
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise UserError(
                    f"{path}: found tensor {key} of shape {list(tensor.shape)} with fewer stored values; use "
                    "`tensor.contiguous()` before saving it."
                )
        # PyTorch cannot convert its bfloat16 to NumPy.
        return {str(key): (v.float() if v.is_floating_point() else v).detach().numpy() for key, v in content.items()}


def _check_cost(path: pathlib.Path) -> None:
    """Raises ValueError for a file that would cost `torch.load` minutes or gigabytes.

    `torch.save` does not compress, so tensors need no more memory than their file. `torch.load` matches rejected names
    with regular expressions, whose time is quadratic in the length of the name.
    """
    with open(path, "rb") as file:
        if file.read(4) == b"PK\3\4":  # a zip archive
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
                if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                    raise ValueError("found compressed tensors")
                pickles: list[IO[bytes]] = [io.BytesIO(archive.read(m)) for m in members if m.filename.endswith(".pkl")]
        else:  # the format before PyTorch 1.6: five pickles, then the tensors' bytes
            file.seek(0)
            pickles = [file] * 5
        for pickled in pickles:
            for _, argument, _ in pickletools.genops(pickled):
                if isinstance(argument, str | bytes) and len(argument) > _LONGEST:
                    raise ValueError(f"found a name of {len(argument)} characters")


def _fill(
    name: str, num_classes: int, state_dict: Mapping[str, np.ndarray], fresh: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the variables of a network filled with the tensors, without the `fresh` layers."""
    network = build(name, num_classes=num_classes)
    image = jnp.zeros((1, 224, 224, 3))  # all patches divide it
    abstract = jax.eval_shape(lambda: network.init(jax.random.key(0), image))
    places = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(abstract).items()}
    keys = {}
    for path in places:
        head = path[1] == "classifier"
        layer = network.trunk.torch_head if head else network.trunk.torch_name(path[2:-1])
        leaf = _LEAVES.get(path[-1], path[-1])
        keys[path] = f"{layer}.{leaf}" if layer else leaf
    # Flax's batch norms do not count batches.
    unexpected = sorted(k for k in state_dict.keys() - keys.values() if not k.endswith("num_batches_tracked"))
    filled = {}
    for path, shape in places.items():
        if any(part in fresh for part in path[1:3]):
            continue
        key = keys[path]
        if key not in state_dict:
            instead = f" (but {unexpected[0]}, which {name} lacks)" if unexpected else ""
            raise UserError(f"found no tensor {key} of {name}{instead}; expected the {name} of torchvision or timm.")
        tensor = np.asarray(state_dict[key])
        if path[-1] == "kernel":  # [out, in, height, width] or [out, in]
            tensor = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
        if tensor.shape != shape:
            raise UserError(
                f"found tensor {key} of shape {list(np.shape(state_dict[key]))}, {list(tensor.shape)} in Flax; "
                f"expected {list(shape)}, as in torchvision or timm."
            )
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise UserError(f"found tensor {key} of dtype {tensor.dtype}; expected floating point numbers.")
        with np.errstate(over="ignore"):
            filled[path] = tensor.astype(np.float32, copy=False)
        if not np.isfinite(filled[path]).all():
            raise UserError(f"found NaN or infinite values in tensor {key}; expected finite values.")
    if unexpected:
        raise UserError(
            f"found tensor {unexpected[0]}, which {name} lacks; expected the {name} of torchvision or timm."
        )
    return traverse_util.unflatten_dict(filled)
