"""The peer: Grafit's training step (docs/paper.md section 2) in plain PyTorch, as released or well tuned.

torch and torchvision are optional (`pip install -e '.[benchmark]'`). The work is that of `grafit_jax.train_step`: T
views of each image, the target network on all of them without gradient, the online network on all of them with
gradient, the k-NN loss of the first view over the whole memory, the instance loss, SGD with Nesterov momentum, EMA and
memory update.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

# Pixel statistics of the CIFAR-100 configs.
_MEAN, _STD = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)


def torchvision():
    """Imports torchvision even if its compiled operators do not match torch; they are not needed here."""
    try:
        import torchvision
    except RuntimeError:  # "operator torchvision::nms does not exist"
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # remains of the first attempt
        import torchvision

    return torchvision


def _mlp(features: int, hidden: int, dim: int) -> nn.Sequential:
    first = nn.Linear(features, hidden, bias=False)
    return nn.Sequential(first, nn.BatchNorm1d(hidden), nn.ReLU(True), nn.Linear(hidden, dim))


def _trunk(name: str) -> tuple[nn.Module, int]:
    """Returns a trunk and its width: "resnet18" with a CIFAR stem, or "resnet8", 16 wide, on 2 x 2 patches."""
    resnet = torchvision().models.resnet
    if name == "resnet18":
        net = resnet.resnet18()
        net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        net.maxpool = net.fc = nn.Identity()
        return net, 512
    blocks: list[nn.Module] = [resnet.BasicBlock(16, 16)]
    for width in (16, 32):
        shortcut = nn.Sequential(nn.Conv2d(width, 2 * width, 1, 2, bias=False), nn.BatchNorm2d(2 * width))
        blocks.append(resnet.BasicBlock(width, 2 * width, 2, shortcut))
    stem = [nn.PixelUnshuffle(2), nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 64


def knn_loss(z: Tensor, labels: Tensor, memory: Tensor, memory_labels: Tensor, ids: Tensor, sigma: float) -> Tensor:
    """Returns the k-NN loss [B], Eq. 2-3, by the whole [B, N] array."""
    similarity = F.normalize(z, dim=1) @ memory.T / sigma
    similarity = similarity.scatter(1, ids[:, None], float("-inf"))
    same = memory_labels[None, :] == labels[:, None]
    return similarity.logsumexp(1) - similarity.masked_fill(~same, float("-inf")).logsumexp(1)


def instance_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Returns the instance loss [B], Eq. 1, of predictions and targets [T, B, D]."""
    p, t = F.normalize(predictions, dim=-1), F.normalize(targets, dim=-1)
    views = len(p)
    cosines = torch.einsum("ibd,jbd->bij", p, t)
    return -(cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)) / (views * (views - 1))


class Trainer:
    """State and step of a config on training images and labels.

    `tuned` uses channels-last layout, `torch.compile` and data on the device; otherwise it is like released code, in
    float32.
    """

    def __init__(self, config, images: np.ndarray, labels: np.ndarray, *, tuned: bool, device: str):
        torch.manual_seed(0)
        hidden, dim = config.model.head_hidden_dim, config.model.embed_dim
        self.images, self.device = images, device
        self.num_views, self.batch_size = config.views.num_views, config.train.batch_size
        self.dtype = getattr(torch, config.model.dtype) if tuned else torch.float32
        self.layout = torch.channels_last if tuned else torch.contiguous_format
        net, features = _trunk(config.model.trunk)
        online: Any = nn.Sequential(net, _mlp(features, hidden, dim)).to(device)
        online = online.to(memory_format=self.layout)
        target = copy.deepcopy(online).requires_grad_(False)
        self.predictor = _mlp(dim, hidden, dim).to(device)
        self.averages, self.averaged = list(target.parameters()), list(online.parameters())
        self.online: Any = torch.compile(online) if tuned else online
        self.target: Any = torch.compile(target) if tuned else target
        parameters = [*online.parameters(), *self.predictor.parameters()]
        self.optimizer = torch.optim.SGD(parameters, 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        self.memory = F.normalize(torch.randn(len(images), dim, device=device), dim=1)
        self.labels = torch.as_tensor(labels, device=device).long()
        self.workers = 0 if tuned else 4 if device == "cuda" else 2
        self.loaded_ahead = 2 * self.workers  # batches, the DataLoader's default
        self.batches = self._made_here() if tuned else self._loaded()

    def step(self) -> Tensor:
        views, ids = next(self.batches)  # [T, B, C, H, W], [B]
        flat = views.flatten(0, 1).contiguous(memory_format=self.layout)
        low = torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)
        with torch.no_grad(), low:
            targets = self.target(flat).float().unflatten(0, (self.num_views, -1))
        with low:
            projection = self.online(flat)
            prediction = self.predictor(projection)
        projection = projection.float()[: len(ids)]
        loss = knn_loss(projection, self.labels[ids], self.memory, self.labels, ids, 0.05).mean()
        loss = loss + instance_loss(prediction.float().unflatten(0, (self.num_views, -1)), targets).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.averaged, 0.01)
            mixed = self.memory[ids] + F.normalize(projection, dim=1)
            self.memory[ids] = F.normalize(mixed, dim=1)
        return loss

    def run(self, steps: int) -> float:
        """Runs some steps and returns the last loss, which waits for the device."""
        for _ in range(steps):
            loss = self.step()
        return loss.item()

    def _loaded(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields views and ids as released code does: torchvision's transforms in the workers of a DataLoader."""
        transform, _ = per_image_transforms("weak", 32)

        def collate(ids: list[int]) -> tuple[Tensor, Tensor]:
            views = [[transform(self.images[i]) for i in ids] for _ in range(self.num_views)]
            return torch.stack([torch.stack(view) for view in views]), torch.tensor(ids)

        loader: Any = torch.utils.data.DataLoader(
            range(len(self.images)),  # type: ignore[arg-type]
            self.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=self.device == "cuda",
        )
        while True:
            for views, ids in loader:
                yield views.to(self.device, non_blocking=True), ids.to(self.device)

    def _made_here(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields views and ids, gathered and transformed on the device, a batch at a time."""
        on_device = torch.as_tensor(self.images, device=self.device)
        while True:
            for ids in torch.randperm(len(self.images), device=self.device).split(self.batch_size):
                if len(ids) == self.batch_size:
                    batch = on_device[ids].permute(0, 3, 1, 2).float() / 255
                    yield torch.stack([batch_transform(batch) for _ in range(self.num_views)]), ids


def per_image_transforms(kind: str, size: int) -> list[Callable[[np.ndarray], Tensor]]:
    """Returns transforms of an image uint8 [H, W, C] to a "weak" or "strong" view: by PIL, on a tensor."""
    t = torchvision().transforms
    steps: list[Any] = [t.RandomResizedCrop(size, (0.2, 1.0)), t.RandomHorizontalFlip()]
    if kind == "strong":
        steps.append(t.RandAugment(2, 9))
    erase = [t.RandomErasing(0.25)] if kind == "strong" else []
    last = [t.ConvertImageDtype(torch.float32), t.Normalize(_MEAN, _STD), *erase]
    by_pil = t.Compose([*steps, t.PILToTensor(), *last])
    on_tensor = t.Compose([*steps, *last])
    return [
        lambda image: by_pil(Image.fromarray(image)),
        lambda image: on_tensor(torch.from_numpy(image).permute(2, 0, 1)),
    ]


def batch_transform(x: Tensor) -> Tensor:
    """Returns weak views of a batch [B, 3, H, W]: one resampling, with a box for each image."""
    b, device = len(x), x.device
    area = torch.empty(b, device=device).uniform_(0.2, 1.0)
    ratio = torch.empty(b, device=device).uniform_(np.log(3 / 4), np.log(4 / 3)).exp()
    w, h = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    cx, cy = ((2 * torch.rand(b, device=device) - 1) * (1 - side) for side in (w, h))
    w = torch.where(torch.rand(b, device=device) < 0.5, -w, w)
    zero = torch.zeros_like(w)
    matrix = torch.stack([torch.stack([w, zero, cx], 1), torch.stack([zero, h, cy], 1)], 1)
    grid = F.affine_grid(matrix, [b, 3, *x.shape[2:]], align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (_MEAN, _STD))
    return (x - mean) / std
