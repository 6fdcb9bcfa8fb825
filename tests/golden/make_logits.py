"""Writes logits.json: logits of torchvision's and timm's networks for the weights and images of helpers/state_dicts.py.

PYTHONPATH=tests:experiments python tests/golden/make_logits.py      (needs PyTorch, torchvision and timm)
"""

import json
import pathlib

import torch
from benchmarks import torch_peer

from helpers import state_dicts

models = torch_peer.torchvision().models
import timm  # noqa: E402, needs the import of torchvision above

golden = {}
for name in ("resnet18", "resnet50", "regnet_y_400mf", "tf_efficientnet_lite0"):
    net = getattr(models, name)(num_classes=10) if hasattr(models, name) else timm.create_model(name, num_classes=10)
    net.load_state_dict({key: torch.from_numpy(value) for key, value in state_dicts.state_dict(name).items()})
    with torch.no_grad():
        golden[name] = net.eval()(torch.from_numpy(state_dicts.images().transpose(0, 3, 1, 2).copy())).tolist()
pathlib.Path(__file__).with_name("logits.json").write_text(json.dumps(golden, indent=1) + "\n")
