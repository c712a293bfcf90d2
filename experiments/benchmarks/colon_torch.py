"""The colon network with augmentation as a plain PyTorch loop, as a reference for speed.

    python colon_torch.py --bags bags.npz --out torch.json --timing-only-epochs 3

The paper's network for colon patches (Ilse et al. 2018, supplement) with attention and one logit, one bag per step,
automatic differentiation, `torch.optim.Adam(fused=True)`, without compilation. Augmentation has the law of
`mil_jax.augment` and is written for the whole bag at once: a symmetry of the square for each patch, by one lookup with
a table of eight orders of the pixels, and a 3 x 3 matrix and an offset for the optical density of each patch's stains.
"""

# pyright: reportMissingImports=false
import argparse
import time
from itertools import pairwise
from typing import Any

import numpy as np
import peer_io
from peer_io import Member

if __name__ == "__main__":
    peer_io.colon_options()
    peer_io.require("torch")


import torch
import torch_peer
from torch import nn
from torch.nn import functional


class ColonNet(nn.Module):
    """Two convolutions with pooling, dense layers, attention (Ilse et al. 2018, equation 8), and one logit."""

    def __init__(self, task: dict[str, Any]):
        super().__init__()
        (first, side), (second, other) = task["filters"]
        size = ((task["side"] - side + 1) // 2 - other + 1) // 2
        widths = [second * size * size, *task["hidden"]]
        self.convolutions = nn.ModuleList([nn.Conv2d(3, first, side), nn.Conv2d(first, second, other)])
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.V = nn.Linear(widths[-1], task["attention_units"], bias=False)
        self.w = nn.Linear(task["attention_units"], 1, bias=False)
        self.head = nn.Linear(widths[-1], 1)
        self.dropout = task["dropout"]
        torch_peer.initialise(self)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches ``[n, 3, side, side]`` of a bag to its logit ``[]``."""
        for convolution in self.convolutions:
            # ReLU keeps the order of values, and after pooling there are fewer.
            patches = torch.relu(functional.max_pool2d(convolution(patches), 2))
        bag = patches.flatten(1)
        for layer in self.layers:
            bag = functional.dropout(torch.relu(layer(bag)), self.dropout) if self.dropout else torch.relu(layer(bag))
        weights = torch.softmax(self.w(torch.tanh(self.V(bag))), dim=0)
        return self.head((weights * bag).sum(dim=0)).squeeze()


class Augmentation:
    """Turns, mirrors and re-stains the patches of a bag; see `mil_jax.augment`, whose constants the task holds."""

    def __init__(self, task: dict[str, Any]):
        pixels = np.arange(task["side"] ** 2).reshape(task["side"], task["side"])
        turned = [np.rot90(pixels, quarter) for quarter in range(4)]
        orders = [order.ravel() for one in turned for order in (one, one[:, ::-1])]
        self.orders = torch.from_numpy(np.stack(orders).astype(np.int64))
        self.stains, self.unstains = (torch.tensor(task[name]) for name in ("stains", "unstains"))
        self.scale, self.shift = task["scale"], task["shift"]
        # Patches are bytes: the optical density of each of 256 values is computed once.
        self.density = -torch.log((torch.arange(256, dtype=torch.float32) + 1) / 256)

    def __call__(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches ``[n, side, side, 3]``, bytes, to values in [0, 1], ``[n, 3, side, side]``."""
        count, side = patches.shape[:2]
        order = self.orders[torch.randint(8, (count,))]
        pixels = torch.take_along_dim(patches.reshape(count, -1, 3), order[..., None], dim=1)
        ones, zeros = torch.ones(count, 1), torch.zeros(count, 1)
        factor = torch.cat([(1 + self.scale * torch.randn(count, 2)).clamp_min(0), ones], dim=1)
        offset = torch.cat([self.shift * torch.randn(count, 2), zeros], dim=1) @ self.stains
        mix = (self.unstains * factor[:, None]) @ self.stains
        density = torch.baddbmm(offset[:, None], self.density[pixels.long()], mix)
        light = density.neg_().exp_().mul_(256 / 255).sub_(1 / 255).clamp_(0, 1)
        return light.reshape(count, side, side, 3).permute(0, 3, 1, 2)


def train_epoch(
    model: ColonNet,
    optimizer: torch.optim.Optimizer,
    bags: list[torch.Tensor],
    labels: torch.Tensor,
    augment: Augmentation | None,
) -> float:
    """Visit every bag once in a new order; returns the mean loss."""
    total = torch.zeros(())
    for index in torch.randperm(len(bags)).tolist():
        patches = bags[index].permute(0, 3, 1, 2) / 255 if augment is None else augment(bags[index])
        loss = functional.binary_cross_entropy_with_logits(model(patches), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
    return total.item() / len(bags)


def time_member(options: argparse.Namespace, number: int, task: dict[str, Any], arrays: dict[str, Any]) -> Member:
    """Train for the asked number of epochs and do nothing else."""
    torch.manual_seed(options.seed + number)
    model = ColonNet(task)
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)
    rates = {"lr": task["learning_rate"], "weight_decay": task["weight_decay"]}
    optimizer = torch.optim.Adam(model.parameters(), eps=peer_io.ADAM_EPSILON, fused=True, **rates)
    bags, labels = list(torch.from_numpy(arrays["patches"])), torch.from_numpy(arrays["labels"]).float()
    augment, losses, seconds = Augmentation(task) if task["augment"] else None, [], []
    for _ in range(options.timing_only_epochs):
        start = time.perf_counter()
        losses.append(train_epoch(model, optimizer, bags, labels, augment))
        seconds.append(time.perf_counter() - start)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Member(options.seed + number, parameters, losses, [], seconds, seconds)


def main(options: argparse.Namespace) -> None:
    """Choose the threads and run the members."""
    torch_peer.settle(options.threads)
    task, arrays = peer_io.read_task(options.bags)
    members = [time_member(options, i, task, arrays) for i in range(options.members)]
    peer = {"peer": "torch", "threads": options.threads, "versions": {"torch": torch.__version__}}
    peer_io.write_timings(options.out, peer, members, len(arrays["labels"]))


if __name__ == "__main__":
    main(peer_io.colon_options())
