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
import time
from itertools import pairwise
from typing import Any

import numpy as np
import peer_io

if __name__ == "__main__":
    peer_io.classic_options()
    peer_io.require("torch")

import torch
import torch_peer
from torch import nn
from torch.nn import functional


class GatedAttention(nn.Module):
    """A multilayer perceptron, gated attention (Ilse et al. 2018, equation 9), and one logit for the bag."""

    def __init__(self, features: int, hidden: list[int], units: int):
        super().__init__()
        widths = [features, *hidden]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.V, self.U = (nn.Linear(widths[-1], units, bias=False) for _ in "VU")
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
    [rate], [decay] = task["learning_rates"], task["weight_decays"]
    optimizer = torch.optim.Adam(model.parameters(), rate, eps=peer_io.ADAM_EPSILON, weight_decay=decay, fused=True)
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
        task_arrays = dict(arrays)
    task = json.loads(str(task_arrays["options"]))
    bags = np.split(task_arrays["x"], np.cumsum(task_arrays["sizes"])[:-1])
    fits = []
    for i in range(options.first, len(task_arrays["test"]), options.stride):
        folds = {name: task_arrays[name][i][task_arrays[name][i] >= 0] for name in ("train", "val", "test")}
        fits.append(fit(task, bags, task_arrays["label"], folds, seed=i))
    answer = {"fits": fits, "peak_memory_mib": peer_io.peak_memory_mib(), "torch": torch.__version__}
    peer_io.write_json(options.out, answer)


if __name__ == "__main__":
    main(peer_io.classic_options())
