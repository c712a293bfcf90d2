"""The same model as a plain PyTorch loop, as a reference for speed and quality.

    python torch_peer.py --bags bags.npz --out torch.json

One bag per step, automatic differentiation, `torch.optim.Adam(fused=True)`: the loop that a careful
user writes, without compilation. Model, loss and stopping are those of the Keras example
(`keras_peer.py`). The loop does no more than it has to: nothing is read back inside an epoch, the
bags are split into rows before it, and denormal numbers are flushed to zero.

One difference remains: PyTorch's Adam, like Optax's, adds epsilon to the bias-corrected root of
the second moment, Keras' to the uncorrected one, which makes its epsilon up to 32 times larger at
the start.
"""

# pyright: reportMissingImports=false
import argparse
import sys
import time

import peer_io
from peer_io import Clock, Member, Prediction, Split


def read_options(arguments: list[str]) -> argparse.Namespace:
    """The options of this peer."""
    parser = peer_io.option_parser("The Keras example's model as a plain PyTorch loop.")
    parser.add_argument("--threads", type=peer_io.whole_number(1), default=1, help="threads of PyTorch")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    # Before the import below, so that --help and a wrong option answer without PyTorch.
    read_options(sys.argv[1:])
    peer_io.require("torch")

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402


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
        self.V = nn.Linear(64, peer_io.ATTENTION_UNITS, bias=False)
        self.U = nn.Linear(64, peer_io.ATTENTION_UNITS, bias=False)
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


def as_tensors(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """Bags ``[B, K, pixels]`` and labels ``[B]``."""
    return torch.from_numpy(split.instances).flatten(2), torch.from_numpy(split.labels).long()


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


@torch.inference_mode()
def validation_loss(model: AttentionMIL, bags: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean cross-entropy with L2, without class weights."""
    return (functional.cross_entropy(model(bags)[0], labels) + model.penalty()).item()


@torch.inference_mode()
def predict(model: AttentionMIL, bags: torch.Tensor) -> Prediction:
    """Probabilities and attention weights of all bags at once."""
    logits, attention = model(bags)
    return Prediction(torch.softmax(logits, dim=-1).numpy(), attention.numpy())


def build(options: argparse.Namespace, member: int, train: Split) -> tuple[AttentionMIL, torch.optim.Adam]:
    """A fresh model and its optimizer; seeds everything that this member draws."""
    torch.manual_seed(options.seed + member)
    model = AttentionMIL(train.bag_size, train.instances[0, 0].size)
    optimizer = torch.optim.Adam(model.parameters(), lr=peer_io.LEARNING_RATE, eps=peer_io.ADAM_EPSILON, fused=True)
    return model, optimizer


def fit_member(options: argparse.Namespace, member: int, train: Split, val: Split, test: Split) -> Member:
    """Train with early stopping, take the best epoch's weights, predict the test bags."""
    model, optimizer = build(options, member, train)
    bags, labels = as_tensors(train)
    val_bags, val_labels = as_tensors(val)
    weights = torch.tensor(peer_io.class_weights(train.labels, options.class_weights))
    train_loss, val_loss, clock = [], [], Clock([], [])
    best_loss, stale, best_weights = float("inf"), 0, {}
    for _ in range(options.epochs):
        start = time.perf_counter()
        train_loss.append(train_epoch(model, optimizer, bags, labels, weights))
        clock.train_seconds.append(time.perf_counter() - start)
        loss = validation_loss(model, val_bags, val_labels)
        val_loss.append(loss)
        stale += 1
        if loss < best_loss:
            best_loss, stale = loss, 0
            best_weights = {name: value.clone() for name, value in model.state_dict().items()}
        clock.epoch_seconds.append(time.perf_counter() - start)
        if stale >= options.patience:
            break
    model.load_state_dict(best_weights)
    prediction = predict(model, as_tensors(test)[0])
    return Member(options.seed + member, parameter_count(model), train_loss, val_loss, clock, prediction)


def time_member(options: argparse.Namespace, member: int, train: Split) -> Member:
    """Train for the asked number of epochs and do nothing else."""
    model, optimizer = build(options, member, train)
    bags, labels = as_tensors(train)
    weights = torch.tensor(peer_io.class_weights(train.labels, options.class_weights))
    train_loss, seconds = [], []
    for _ in range(options.timing_only_epochs):
        start = time.perf_counter()
        train_loss.append(train_epoch(model, optimizer, bags, labels, weights))
        seconds.append(time.perf_counter() - start)
    return Member(options.seed + member, parameter_count(model), train_loss, [], Clock(seconds, seconds), None)


def parameter_count(model: nn.Module) -> int:
    """The number of trained numbers."""
    return sum(parameter.numel() for parameter in model.parameters())


def main(options: argparse.Namespace) -> None:
    """Choose the threads and run the members."""
    settle(options.threads)
    versions = {"torch": torch.__version__}
    peer = {"peer": "torch", "backend": "torch", "threads": options.threads, "versions": versions}
    peer_io.run_members(options, peer, fit_member, time_member)


if __name__ == "__main__":
    main(read_options(sys.argv[1:]))
