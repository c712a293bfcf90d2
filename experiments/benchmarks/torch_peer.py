"""The same model as a plain PyTorch loop, as a reference for speed.

    python torch_peer.py --bags bags.npz --out torch.json --timing-only-epochs 5

One bag per step, automatic differentiation, `torch.optim.Adam(fused=True)`: a careful user's loop, without compilation.
Model and loss are those of the Keras example (`keras_peer.py`). The loop does no more than it has to:
nothing is read back inside an epoch, the bags are split into rows before it, and denormal numbers are flushed to zero.

One difference remains: PyTorch's Adam, like Optax's, adds epsilon to the bias-corrected root of the second moment,
Keras' to the uncorrected one, which makes its epsilon up to 32 times larger at the start.
"""

# pyright: reportMissingImports=false
import argparse
import time

import peer_io
from peer_io import Member, Split

if __name__ == "__main__":
    peer_io.torch_options()  # so that --help and a wrong option answer without PyTorch
    peer_io.require("torch")

import torch
from torch import nn
from torch.nn import functional


def initialise(model: nn.Module) -> None:
    """Draws initial parameters as Keras and mil_jax do; PyTorch's own defaults differ."""
    for name, parameter in model.named_parameters():
        (nn.init.zeros_ if name.endswith("bias") else nn.init.xavier_uniform_)(parameter)


def settle(threads: int) -> None:
    """Chooses the threads of this process, and has denormal numbers flushed to zero."""
    torch.set_num_threads(threads)
    # Moments of weights that have stopped moving decay into denormals, which a CPU adds slowly.
    torch.set_flush_denormal(True)


class AttentionMIL(nn.Module):
    """Gated attention over embedded instances, with a head on the concatenated embeddings."""

    def __init__(self, bag_size: int, pixels: int):
        super().__init__()
        self.hidden = nn.Linear(pixels, 128)
        self.embed = nn.Linear(128, 64)
        self.V, self.U = (nn.Linear(64, peer_io.ATTENTION_UNITS, bias=False) for _ in "VU")
        self.w = nn.Linear(peer_io.ATTENTION_UNITS, 1, bias=False)
        self.head = nn.Linear(64 * bag_size, 2)
        initialise(self)

    def forward(self, bags: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bags ``[..., K, pixels]`` to logits ``[..., C]`` and attention ``[..., K]``."""
        embeddings = torch.relu(self.embed(torch.relu(self.hidden(bags))))
        gated = torch.tanh(self.V(embeddings)) * torch.sigmoid(self.U(embeddings))
        attention = torch.softmax(self.w(gated), dim=-2)
        logits = self.head((attention * embeddings).flatten(-2))
        return logits, attention.squeeze(-1)

    def penalty(self) -> torch.Tensor:
        """L2 x sum of squares of V, U and w."""
        squares = [layer.weight.square().sum() for layer in (self.V, self.U, self.w)]
        return peer_io.L2 * (squares[0] + squares[1] + squares[2])


def train_epoch(
    model: AttentionMIL,
    optimizer: torch.optim.Optimizer,
    bags: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
) -> float:
    """Visit every bag once in a new order; returns the mean of the weighted loss with L2."""
    rows = list(zip(bags.unbind(), labels.unbind(), weights[labels].unbind(), strict=True))
    total = torch.zeros(())
    for index in torch.randperm(len(rows)).tolist():
        bag, label, weight = rows[index]
        loss = weight * functional.cross_entropy(model(bag)[0], label) + model.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
    return total.item() / len(rows)


def time_member(options: argparse.Namespace, member: int, train: Split) -> Member:
    """Train for the asked number of epochs and do nothing else; the seed decides everything that is drawn."""
    torch.manual_seed(options.seed + member)
    model = AttentionMIL(train.instances.shape[1], train.instances[0, 0].size)
    optimizer = torch.optim.Adam(model.parameters(), lr=peer_io.LEARNING_RATE, eps=peer_io.ADAM_EPSILON, fused=True)
    bags, labels = torch.from_numpy(train.instances).flatten(2), torch.from_numpy(train.labels).long()
    weights, losses, seconds = torch.tensor(train.class_weights), [], []
    for _ in range(options.timing_only_epochs):
        start = time.perf_counter()
        losses.append(train_epoch(model, optimizer, bags, labels, weights))
        seconds.append(time.perf_counter() - start)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Member(options.seed + member, parameters, losses, [], seconds, seconds)


def main(options: argparse.Namespace) -> None:
    """Choose the threads and run the members."""
    settle(options.threads)
    train = peer_io.read_split(options.bags, "train")
    members = [time_member(options, i, train) for i in range(options.members)]
    peer = {"peer": "torch", "backend": "torch", "threads": options.threads, "versions": {"torch": torch.__version__}}
    peer_io.write_results(options.out, peer, members, train)


if __name__ == "__main__":
    main(peer_io.torch_options())
