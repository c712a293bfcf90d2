"""Cross-validation of gated attention on feature vectors as a plain PyTorch loop, as a reference for speed and quality.

    python classic_torch.py --task task.npz --out torch.json

One fit after the other, one bag per step, automatic differentiation, `torch.optim.Adam(fused=True)`, validation after
every epoch, early stopping, the best epoch's weights: the loop that a careful user writes, without compilation. Bags
are tensors of their own sizes, standardised before the fit and without padding; nothing is read back inside an epoch;
denormal numbers are flushed to zero. `classic_speed.py` writes the task: the bags, the folds, and the options of
`classic_benchmarks.py`.
"""

# pyright: reportMissingImports=false
import argparse
import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import peer_io


def read_options(arguments: list[str]) -> argparse.Namespace:
    """The options of this peer."""
    parser = peer_io.OneLineParser(description="Gated attention on feature vectors as a plain PyTorch loop.")
    parser.add_argument("--task", type=Path, required=True, help="the .npz file of bags, folds and options")
    parser.add_argument("--out", type=peer_io.json_path, required=True, help="the .json file to write")
    parser.add_argument("--first", type=peer_io.whole_number(0), default=0, help="the first fit of this process")
    parser.add_argument(
        "--stride", type=peer_io.whole_number(1), default=1, help="it does every so manieth fit from there on"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    read_options(sys.argv[1:])
    peer_io.require("torch")

import torch  # noqa: E402
import torch_peer  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402


class GatedAttention(nn.Module):
    """A multilayer perceptron, gated attention (Ilse et al. 2018, equation 9), and one logit for the bag."""

    def __init__(self, features: int, hidden: list[int], units: int):
        super().__init__()
        widths = [features, *hidden]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.V = nn.Linear(widths[-1], units, bias=False)
        self.U = nn.Linear(widths[-1], units, bias=False)
        self.w = nn.Linear(units, 1, bias=False)
        self.head = nn.Linear(widths[-1], 1)
        torch_peer.initialise(self)

    def forward(self, bag: torch.Tensor) -> torch.Tensor:
        """A bag ``[n, features]`` to its logit ``[]``."""
        for layer in self.layers:
            bag = torch.relu(layer(bag))
        scores = self.w(torch.tanh(self.V(bag)) * torch.sigmoid(self.U(bag)))
        return self.head((torch.softmax(scores, dim=0) * bag).sum(dim=0)).squeeze()


def standardise(bags: list[np.ndarray], train: np.ndarray) -> list[torch.Tensor]:
    """The bags by mean and standard deviation of the instances of the training bags; constant features become 0."""
    rows = np.concatenate([bags[i] for i in train]).astype(np.float64)
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    deviation = np.where(deviation <= 1e-7 * np.maximum(np.abs(mean), 1), 1, deviation)
    return [torch.from_numpy(((bag - mean) / deviation).astype(np.float32)) for bag in bags]


@torch.inference_mode()
def logits_of(model: GatedAttention, bags: list[torch.Tensor], index: np.ndarray) -> torch.Tensor:
    """The logits of the bags at `index`."""
    return torch.stack([model(bags[i]) for i in index])


def fit(
    task: dict[str, Any], bags: list[np.ndarray], label: np.ndarray, folds: dict[str, np.ndarray], seed: int
) -> dict[str, Any]:
    """One fit: trained, stopped early, judged on its test fold; with its seconds."""
    torch.manual_seed(seed)
    own = standardise(bags, folds["train"])
    target = torch.from_numpy(label.astype(np.float32))
    model = GatedAttention(own[0].shape[1], task["hidden"], task["attention_units"])
    optimizer = torch.optim.Adam(
        model.parameters(), lr=task["learning_rate"], weight_decay=task["weight_decay"], eps=1e-7, fused=True
    )
    start = time.perf_counter()
    best, stale, weights, epochs = float("inf"), 0, {}, 0
    while epochs < task["epochs"] and stale < task["patience"]:
        for i in folds["train"][torch.randperm(len(folds["train"])).numpy()]:
            loss = functional.binary_cross_entropy_with_logits(model(own[i]), target[i])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        of_val = logits_of(model, own, folds["val"])
        loss = functional.binary_cross_entropy_with_logits(of_val, target[folds["val"]]).item()
        epochs, stale = epochs + 1, stale + 1
        if loss < best:
            best, stale, weights = loss, 0, {name: value.clone() for name, value in model.state_dict().items()}
    seconds = time.perf_counter() - start
    model.load_state_dict(weights)
    called = logits_of(model, own, folds["test"]).numpy() >= 0
    right = int((called == label[folds["test"]]).sum())
    return {"seconds": seconds, "epochs": epochs, "right": right, "judged": len(folds["test"])}


def main(options: argparse.Namespace) -> None:
    """Does the fits of this process."""
    torch_peer.settle(threads=1)  # matrices as small as these gain nothing by a second one
    with np.load(options.task) as arrays:
        held = dict(arrays)
    task = json.loads(str(held["options"]))
    bags = np.split(held["x"], np.cumsum(held["sizes"])[:-1])
    fits = []
    for i in range(options.first, len(held["test"]), options.stride):
        folds = {name: held[name][i][held[name][i] >= 0] for name in ("train", "val", "test")}
        fits.append(fit(task, bags, held["label"], folds, seed=i))
    answer = {"fits": fits, "peak_memory_mib": peer_io.peak_memory_mib(), "torch": torch.__version__}
    options.out.write_text(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(read_options(sys.argv[1:]))
