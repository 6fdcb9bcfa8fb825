"""Weights under torchvision's names (timm's ResNets have the same, its RegNets others) as variables of our networks."""

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
from grafit_jax.models.trunks import build

# The files that `read` reads.
WEIGHTS = (".safetensors", ".pth", ".pt")

# The last part of a path of ours -> what torchvision calls it.
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# Characters of a tensor's name, or of anything else that is pickled.
_LONGEST = 1000


def convert(name: str, state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables of `build(name, num_classes=...)` from a torchvision network's tensors.

    Args:
      name: as for `build`.
      state_dict: numpy arrays of any float type under torchvision's names; the number of classes is that of `fc.bias`.

    Returns:
      {"params": ..., "batch_stats": ...}, float32 numpy arrays.

    Raises:
      UserError: a tensor that is missing, unexpected, of another shape, not floating point or not finite, by its name.
    """
    num_classes = np.size(state_dict["fc.bias"]) if "fc.bias" in state_dict else 1000
    return _fill(name, num_classes, state_dict)


def load_trunk(path: str | pathlib.Path, name: str, *, stem: str) -> dict[str, Any]:
    """The variables of the trunk `name` from a file, to start training from; see `read` and `convert`.

    The file's classifier is left out. Another stem than torchvision's has a fresh convolution, which is not among the
    variables; its batch norm is pretrained, as in MaskCon's code.
    """
    state_dict = {key: value for key, value in read(path).items() if not key.startswith("fc.")}
    # The trunk's own convolution: those of blocks are one level further down.
    fresh = ("classifier",) if stem == "imagenet" else ("classifier", "Conv_0")
    try:
        variables = _fill(name, 1, state_dict, fresh)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return {collection: tree["trunk"] for collection, tree in variables.items()}


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file, or of a .pth or .pt state dict (which needs PyTorch), by name.

    Nothing but tensors is ever unpickled. What is wrapped in "state_dict" or "model", or carries DataParallel's
    "module.", is unwrapped.

    Raises:
      UserError: a file that is not there, of another kind or not to be read, or PyTorch is not installed.
    """
    path = pathlib.Path(os.path.expanduser(path))
    if not os.path.isfile(path):
        raise UserError(f"{path} is not there: want a .safetensors or .pth file of weights.")
    if path.suffix not in WEIGHTS:
        raise UserError(f"{path} ends in {path.suffix or 'nothing'}: want a .safetensors or .pth file of weights.")
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
            f"{path} needs PyTorch to be read: `pip install torch`, or write it as .safetensors where there is PyTorch "
            "(safetensors.torch.save_file)."
        ) from None
    with reading(path, "want a state dict of tensors alone, as `torch.save(net.state_dict(), ...)`"):
        _check_cost(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in ("state_dict", "model"):
            if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
                content = content[wrapper]
        if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
            raise UserError(
                f"{path} holds no state dict: want tensors by name, as `torch.save(net.state_dict(), ...)`."
            )
        for key, tensor in content.items():
            # A stride of 0 makes gigabytes of a few bytes.
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise UserError(f"{path}: tensor {key} has shape {list(tensor.shape)}, which the file does not hold.")
        # NumPy has no bfloat16 of PyTorch's.
        return {str(key): (v.float() if v.is_floating_point() else v).detach().numpy() for key, v in content.items()}


def _check_cost(path: pathlib.Path) -> None:
    """Raises ValueError for a file that `torch.load` would take minutes or gigabytes over.

    `torch.save` compresses nothing, so tensors take no more memory than their file. And what `torch.load` will not
    unpickle it looks at with regular expressions, for a time that grows with the square of a name's length.
    """
    with open(path, "rb") as file:
        if file.read(4) == b"PK\3\4":  # a zip archive
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
                if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                    raise ValueError("its tensors are compressed")
                pickles: list[IO[bytes]] = [io.BytesIO(archive.read(m)) for m in members if m.filename.endswith(".pkl")]
        else:  # as PyTorch wrote them before 1.6: five pickles, then the tensors' bytes
            file.seek(0)
            pickles = [file] * 5
        for pickled in pickles:
            for _, argument, _ in pickletools.genops(pickled):
                if isinstance(argument, str | bytes) and len(argument) > _LONGEST:
                    raise ValueError(f"a name of {len(argument)} characters")


def _fill(
    name: str, num_classes: int, state_dict: Mapping[str, np.ndarray], fresh: Sequence[str] = ()
) -> dict[str, Any]:
    """The tensors at the places of our variables, but for the layers that stay fresh."""
    network = build(name, num_classes=num_classes)
    image = jnp.zeros((1, 32, 32, 3))
    abstract = jax.eval_shape(lambda: network.init(jax.random.key(0), image))
    places = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(abstract).items()}
    keys = {}
    for path in places:
        layer = "fc" if path[1] == "classifier" else network.trunk.torch_name(path[2:-1])
        keys[path] = f"{layer}.{_LEAVES[path[-1]]}"
    # Nothing of ours counts batches.
    unexpected = sorted(k for k in state_dict.keys() - keys.values() if not k.endswith("num_batches_tracked"))
    filled = {}
    for path, shape in places.items():
        if any(part in fresh for part in path[1:3]):
            continue
        key = keys[path]
        if key not in state_dict:
            found = f" ({unexpected[0]}, which it has not, is there)" if unexpected else ""
            raise UserError(f"tensor {key} of {name} is missing{found}: want torchvision's {name}.")
        tensor = np.asarray(state_dict[key])
        if path[-1] == "kernel":  # [out, in, height, width] or [out, in]
            tensor = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
        if tensor.shape != shape:
            raise UserError(
                f"tensor {key} is {list(np.shape(state_dict[key]))}, which is {list(tensor.shape)} here, want "
                f"{list(shape)}: want torchvision's {name}."
            )
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise UserError(f"tensor {key} is of {tensor.dtype}: want floating point numbers.")
        with np.errstate(over="ignore"):
            filled[path] = tensor.astype(np.float32, copy=False)
        if not np.isfinite(filled[path]).all():
            raise UserError(f"tensor {key} holds NaN or infinite values: want those of a sound network.")
    if unexpected:
        raise UserError(f"tensor {unexpected[0]} is not one of {name}'s: want torchvision's {name}.")
    return traverse_util.unflatten_dict(filled)
