"""Weights under torchvision's names (timm's ResNets have the same, its RegNets others) as variables of our networks."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from grafit_jax.errors import UserError
from grafit_jax.models.classifier import build

Path = tuple[str, ...]

# The files that `read` reads.
WEIGHTS = (".safetensors", ".pth", ".pt")

# The last part of a path of ours -> what torchvision calls it.
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# What a batch norm of PyTorch counts and nothing of ours uses.
_IGNORED = "num_batches_tracked"


def convert(name: str, state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables of `build(name, num_classes=...)` from a torchvision network's tensors.

    Args:
      name: as for `build`.
      state_dict: numpy arrays of any float type under torchvision's names; the number of classes is that of `fc.bias`.

    Returns:
      {"params": ..., "batch_stats": ...}, float32 numpy arrays.

    Raises:
      UserError: a tensor that is missing, unexpected or of another shape, by its name.
    """
    num_classes = len(state_dict["fc.bias"]) if "fc.bias" in state_dict else 1000
    return _fill(name, num_classes, state_dict, lambda path: True)


def load_trunk(path: str | pathlib.Path, name: str, *, stem: str) -> dict[str, Any]:
    """The variables of the trunk `name` from a file, to start training from; see `read` and `convert`.

    The file's classifier is left out. Other stems than torchvision's stay fresh: their convolution and batch norm are
    not among the variables.
    """
    # Whatever classifies there, of any layers.
    state_dict = {key: value for key, value in read(path).items() if not key.startswith("fc.")}
    fresh: tuple[str, ...] = ("classifier",)
    if stem != "imagenet":
        fresh += ("Conv_0", "BatchNorm_0")  # of the trunk itself: blocks have theirs one level further down
    try:
        variables = _fill(name, 1, state_dict, lambda path: not any(part in fresh for part in path[1:3]))
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
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path} is not there: want a .safetensors or .pth file of weights.")
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.suffix in (".pth", ".pt"):
        tensors = _read_pth(path)
    else:
        raise UserError(f"{path} ends in {path.suffix or 'nothing'}: want a .safetensors or .pth file of weights.")
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    import safetensors
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}): download it again.") from None


def _read_pth(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} needs PyTorch to be read: `pip install torch`, or write it as .safetensors where there is PyTorch "
            "(safetensors.torch.save_file)."
        ) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler may raise anything at what is in a broken file
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path} cannot be read as a state dict of tensors alone ({reason[0]}): want one.") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise UserError(f"{path} holds no state dict: want tensors by name, as `torch.save(net.state_dict(), ...)`.")
    # NumPy has no bfloat16 of PyTorch's.
    return {key: (v.float() if v.is_floating_point() else v).numpy() for key, v in content.items()}


def _fill(
    name: str, num_classes: int, state_dict: Mapping[str, np.ndarray], wanted: Callable[[Path], bool]
) -> dict[str, Any]:
    """The tensors at the places of our variables, of those whose path is `wanted`; others may be there or not."""
    network = build(name, num_classes=num_classes)
    image = jnp.zeros((1, 32, 32, 3))
    abstract = jax.eval_shape(lambda: network.init(jax.random.key(0), image))
    places = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(abstract).items()}
    keys = {}
    for path in places:
        layer = "fc" if path[1] == "classifier" else network.trunk.torch_name(path[2:-1])
        keys[path] = f"{layer}.{_LEAVES[path[-1]]}"
    unexpected = sorted(key for key in state_dict.keys() - keys.values() if not key.endswith(_IGNORED))
    filled = {}
    for path in filter(wanted, places):
        key, shape = keys[path], places[path]
        if key not in state_dict:
            found = f" ({unexpected[0]}, which it has not, is there)" if unexpected else ""
            raise UserError(f"tensor {key} of {name} is missing{found}: want torchvision's {name}.")
        tensor = np.asarray(state_dict[key], np.float32)
        if path[-1] == "kernel":  # [out, in, height, width] or [out, in]
            tensor = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
        if tensor.shape != shape:
            raise UserError(
                f"tensor {key} is {list(np.shape(state_dict[key]))}, which is {list(tensor.shape)} here, want "
                f"{list(shape)}: want torchvision's {name}."
            )
        filled[path] = tensor
    if unexpected:
        raise UserError(f"tensor {unexpected[0]} is not one of {name}'s: want torchvision's {name}.")
    return traverse_util.unflatten_dict(filled)
