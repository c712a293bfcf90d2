"""Gated attention on the features of slides as a plain PyTorch loop, as a reference for speed.

    python features_torch.py --bags bags.npz --out torch.json --timing-only-epochs 3

The network of `classic_torch.py`: dense layers, gated attention (Ilse et al. 2018, equation 9) and one logit; one bag
per step, each a tensor of its own size, automatic differentiation, `torch.optim.Adam(fused=True)`, without compilation;
nothing is read back inside an epoch.
"""

# pyright: reportMissingImports=false
import argparse
import time
from typing import Any

import peer_io
from peer_io import Member

if __name__ == "__main__":
    peer_io.features_options()
    peer_io.require("torch")


import torch
import torch_peer
from classic_torch import GatedAttention
from torch.nn import functional


def time_member(options: argparse.Namespace, number: int, task: dict[str, Any], arrays: dict[str, Any]) -> Member:
    """Train for the asked number of epochs and do nothing else."""
    torch.manual_seed(options.seed + number)
    model = GatedAttention(arrays["features"].shape[1], task["hidden"], task["attention_units"])
    rates = {"lr": task["learning_rate"], "weight_decay": task["weight_decay"]}
    optimizer = torch.optim.Adam(model.parameters(), eps=peer_io.ADAM_EPSILON, fused=True, **rates)
    bags = torch.from_numpy(arrays["features"]).split(arrays["sizes"].tolist())
    labels, losses, seconds = torch.from_numpy(arrays["labels"]).float(), [], []
    for _ in range(options.timing_only_epochs):
        start, total = time.perf_counter(), torch.zeros(())
        for index in torch.randperm(len(bags)).tolist():
            loss = functional.binary_cross_entropy_with_logits(model(bags[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        losses.append(total.item() / len(bags))
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
    main(peer_io.features_options())
