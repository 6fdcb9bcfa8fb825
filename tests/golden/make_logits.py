"""Writes logits.json: logits of torchvision's networks with the weights and images of tests/seeded.py.

PYTHONPATH=tests:experiments python tests/golden/make_logits.py      (needs PyTorch and torchvision)
"""

import json
import pathlib

import torch
from benchmarks import torch_peer

from helpers import state_dicts

golden = {}
for name in (*state_dicts.RESNETS, *state_dicts.REGNETS):
    net = getattr(torch_peer.torchvision().models, name)(num_classes=10)
    net.load_state_dict({key: torch.from_numpy(value) for key, value in state_dicts.state_dict(name).items()})
    with torch.no_grad():
        golden[name] = net.eval()(torch.from_numpy(state_dicts.images().transpose(0, 3, 1, 2).copy())).tolist()
pathlib.Path(__file__).with_name("logits.json").write_text(json.dumps(golden, indent=1) + "\n")
