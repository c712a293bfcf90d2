# pyright: reportMissingImports=false
"""Do our poolings compute what torchmil's do, and what does padding do to either?

Each method gets the same random parameters and bags in both libraries. First without padding: the bag's embedding or
logit, attention, the method's own loss, and the gradient of the logit by the instances. Then padded: how far each
library's result is from its own result without padding.

    python experiments/benchmarks/pooling_parity.py

Where the two differ by design, parameters are chosen that make them the same: torchmil's attention gets biases of 0,
our TransMIL no convolution along the values, the identity behind its attention, and instances that its ReLU lets pass;
our DTFD a gate of 1/2, and torchmil's the instances in the order in which ours deals them out. What padding can do to
torchmil is shown, not what it does on the average: DSMIL's instances score below an empty slot, and a part of DTFD's
bag is padding alone, of which its softmax is not a number (inf here); its TransMIL takes no mask.

It takes a minute at most and needs `pip install 'mil_jax[peers]'`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import peer_io

from mil_jax.errors import check_whole
from mil_jax.pooling import AttentionPooling, CLAMPooling, DSMILPooling, DTFDPooling, TransMILPooling
from mil_jax.run import cli
from mil_jax.run.screen import print_table
from mil_jax.text import Table

D, A, W = 6, 5, 8  # embedding, attention width, TransMIL's width
COUNT = 9  # instances: a square of 3 x 3, and with the class token 10, which 5 landmarks divide


@dataclass(frozen=True)
class Config:
    """Options of the comparison."""

    seeds: int = 5
    """Draws of parameters and bags; the largest difference counts."""
    slots: int = 14
    """Slots of a padded bag of 9 instances."""

    def __post_init__(self) -> None:
        check_whole("seeds", self.seeds, 1)
        check_whole("slots", self.slots, COUNT + 1)


@dataclass(frozen=True)
class Pair:
    """One method in both libraries with the same parameters: functions of instances [K, D] and mask [K] to results."""

    ours: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
    theirs: Callable[[np.ndarray, np.ndarray | None], dict[str, np.ndarray]]
    order: Callable[[np.ndarray], np.ndarray] = lambda instances: np.arange(len(instances))
    """In which order torchmil is given the instances."""


def main(config: Config) -> list[dict[str, Any]]:
    """Compares all methods, prints the two tables and returns their rows."""
    peer_io.require("torch", "torchmil")
    rows = [row for name, pair in PAIRS.items() for row in compare(config, name, pair)]
    agree = [(row["method"], row["what"], f"{row['difference']:.1e}") for row in rows if "difference" in row]
    print_table(Table("Without padding: largest difference from torchmil", ("method", "what", "difference"), agree))
    columns = ("method", "what", "ours", "torchmil")
    padded = [(*(row[name] for name in columns[:2]), *(f"{row[name]:.1e}" for name in columns[2:]))
              for row in rows if "ours" in row]  # fmt: skip
    print_table(Table("Padded: largest difference from the same bag without padding", columns, padded))
    return rows


def compare(config: Config, name: str, make: Callable[[np.random.Generator], Pair]) -> list[dict[str, Any]]:
    """A row for each result of a method, without padding and padded."""
    agree: dict[str, list[float]] = {}
    padded: dict[str, list[tuple[float, float]]] = {}
    for seed in range(config.seeds):
        draw = np.random.default_rng(seed)
        pair = make(draw)
        bag = np.abs(draw.normal(size=(COUNT, D))).astype(np.float32)  # so that TransMIL's ReLU lets it pass
        wide, mask = np.pad(bag, ((0, config.slots - COUNT), (0, 0))), np.arange(config.slots) < COUNT
        ours, order = pair.ours(bag, mask[:COUNT]), pair.order(bag)
        theirs = pair.theirs(bag[order], None)
        ours_padded = {name: unpadded(value) for name, value in pair.ours(wide, mask).items()}
        theirs_padded = {name: unpadded(value) for name, value in pair.theirs(
            np.concatenate([bag[order], wide[COUNT:]]), mask).items()}  # fmt: skip
        for what, value in ours.items():
            given = value[order] if value.shape[:1] == (COUNT,) else value
            agree.setdefault(what, []).append(distance(given, theirs[what]))
            own = distance(ours_padded[what], value), distance(theirs_padded[what], theirs[what])
            padded.setdefault(what, []).append(own)
    rows: list[dict[str, Any]] = [
        {"method": name, "what": what, "difference": max(values)} for what, values in agree.items()
    ]
    for what, values in padded.items():
        ours, theirs = (max(side) for side in zip(*values, strict=True))
        rows.append({"method": name, "what": what, "ours": ours, "torchmil": theirs})
    return rows


def unpadded(value: np.ndarray) -> np.ndarray:
    """What is said of the instances of a padded bag, which stand first."""
    return value[:COUNT] if value.ndim and len(value) > COUNT else value


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference; infinite where one of them is not finite."""
    worst = float(np.max(np.abs(one - other)))
    return worst if np.isfinite(worst) else float("inf")


# ---- both sides ----


def ours_of(pooling: Any, params: Any, logit: Callable[[Any], Any], loss: Callable[[Any], Any] | None = None) -> Any:
    """Our side: a logit made of `Pooled`, its gradient, the attention, and a loss."""

    def run(instances: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        def apply(h: Any) -> tuple[Any, Any]:
            pooled = pooling.apply({"params": jax.tree.map(jnp.asarray, params)}, h, jnp.asarray(mask))
            return logit(pooled), pooled

        (value, pooled), gradient = jax.value_and_grad(apply, has_aux=True)(jnp.asarray(instances))
        parts = {"logit": value, "attention": pooled.attention, "gradient": gradient}
        return {name: np.asarray(part) for name, part in parts.items()} | (
            {} if loss is None else {"loss": np.asarray(loss(pooled))})  # fmt: skip

    return run


def theirs_of(forward: Callable[[Any, Any], tuple[Any, Any]], loss: Callable[[Any, Any], Any] | None = None) -> Any:
    """The other side, torchmil's: `forward` gives a logit and attention for a batch of one bag."""

    def run(instances: np.ndarray, mask: np.ndarray | None) -> dict[str, np.ndarray]:
        import torch

        bag = torch.tensor(instances[None], requires_grad=True)
        given = None if mask is None else torch.tensor(mask[None])
        value, attention = forward(bag, given)
        gradient = torch.autograd.grad(value.sum(), bag)[0]
        parts = {"logit": value.reshape(()), "attention": attention.reshape(-1), "gradient": gradient[0]}
        if loss is not None:
            parts["loss"] = loss(bag, given)
        return {name: part.detach().numpy() for name, part in parts.items()}

    return run


def copy(layer: Any, kernel: np.ndarray, bias: np.ndarray | None = None) -> None:
    """Writes a kernel [inputs, outputs] and a bias, or 0, into a linear layer of PyTorch."""
    import torch

    layer = getattr(layer, "module", layer)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(np.asarray(kernel).T))
        if layer.bias is not None:
            layer.bias.copy_(torch.tensor(np.zeros(len(layer.bias), np.float32) if bias is None else np.asarray(bias)))


def draw_params(pooling: Any, draw: np.random.Generator) -> Any:
    """Random parameters, of which no bias is 0."""
    shapes = jax.eval_shape(lambda: pooling.init(jax.random.key(0), jnp.zeros((COUNT, D)), jnp.ones(COUNT, bool)))
    return jax.tree.map(lambda leaf: 0.5 * draw.normal(size=leaf.shape).astype(np.float32), shapes["params"])


def softmax(scores: Any, mask: Any) -> Any:
    """Attention of the scores that torchmil returns."""
    import torch

    return torch.softmax(scores if mask is None else scores.masked_fill(~mask, -torch.inf), dim=1)


# ---- the methods ----


def copy_attention(pool: Any, params: Any, gain: float = 1.0) -> None:
    """Our V, U and w into torchmil's attention."""
    copy(pool.fc1, params["V"]["kernel"])
    copy(pool.fc2, gain * params["w"]["kernel"])
    if pool.gated:
        copy(pool.fc_gated, params["U"]["kernel"])


def attention(draw: np.random.Generator, *, gated: bool) -> Pair:
    """ABMIL."""
    import torchmil.models as peers

    pooling, peer = AttentionPooling(A, gated), peers.ABMIL((D,), A, gated=gated)
    params, head = draw_params(pooling, draw), draw.normal(size=(D, 1)).astype(np.float32)
    copy_attention(peer.pool, params)
    copy(peer.classifier, head)

    def forward(bag: Any, mask: Any) -> tuple[Any, Any]:
        value, scores = peer(bag, mask, return_att=True)
        return value, softmax(scores, mask)

    return Pair(ours_of(pooling, params, lambda out: (out.embedding @ head)[0]), theirs_of(forward))


def clam(draw: np.random.Generator) -> Pair:
    """CLAM-SB; both with cross-entropy, torchmil's with the sum over the classes' classifiers, ours with the mean."""
    import torch
    import torchmil.models as peers

    pooling, peer = CLAMPooling(2, A, k=3, subtyping=True), peers.CLAM_SB((D,), A, k_sample=3, gated=True)
    params, head = draw_params(pooling, draw), draw.normal(size=(D, 1)).astype(np.float32)
    copy_attention(peer.pool, params)
    copy(peer.classifier, head)
    for i in range(2):
        copy(
            peer.inst_classifiers[i], *(params["instance"][name][..., 2 * i : 2 * i + 2] for name in ("kernel", "bias"))
        )
    del peer.inst_loss_fn  # a module, which a function cannot replace
    peer.inst_loss_fn = lambda logits, target: torch.nn.functional.cross_entropy(logits, target[:, 0].long())

    def forward(bag: Any, mask: Any) -> tuple[Any, Any]:
        value, scores = peer(bag, mask, return_att=True)
        return value, softmax(scores, mask)

    def loss(bag: Any, mask: Any) -> Any:
        return 0.3 / 2 * peer.compute_loss(torch.ones(1), bag, mask)[1]["InstLoss"]

    own = lambda out: pooling.loss(out, jnp.int32(1))  # noqa: E731
    return Pair(ours_of(pooling, params, lambda out: (out.embedding @ head)[0], own), theirs_of(forward, loss))


def dsmil(draw: np.random.Generator) -> Pair:
    """DSMIL, whose prediction is the mean of the streams in both; instances score below a slot of zeros."""
    import torch
    import torchmil.models as peers

    pooling, peer = DSMILPooling(2, A), peers.DSMIL((D,), A, nonlinear_q=True)
    params = draw_params(pooling, draw)
    params["instance"]["kernel"] = -np.abs(params["instance"]["kernel"])
    for layer, name in ((peer.inst_classifier, "instance"), (peer.bag_classifier, "bag"), (peer.q_nn[0], "query_0"),
                        (peer.q_nn[2], "query_1")):  # fmt: skip
        copy(layer, params[name]["kernel"], params[name]["bias"])

    def forward(bag: Any, mask: Any) -> tuple[Any, Any]:
        value, scores, instance = peer.forward(bag, mask, return_att=True, return_inst_pred=True)
        return (value + instance.max(dim=1)[0]) / 2, scores

    def loss(bag: Any, mask: Any) -> Any:
        return sum(peer.compute_loss(torch.ones(1), bag, mask)[1].values()) / 2

    own = lambda out: pooling.loss(out, jnp.int32(1))  # noqa: E731
    return Pair(ours_of(pooling, params, lambda out: out.logits[1], own), theirs_of(forward, loss))


def transmil(draw: np.random.Generator, *, landmarks: int) -> Pair:
    """TransMIL; torchmil's attention of the class token is returned for every copy, and divided by the sum here."""
    import torch
    import torchmil.models as peers

    pooling, peer = TransMILPooling(W, 2, landmarks), peers.TransMIL((D,), W, n_heads=2, n_landmarks=landmarks)
    params, head = draw_params(pooling, draw), draw.normal(size=(W, 1)).astype(np.float32)
    params["project"] = jax.tree.map(np.abs, params["project"])
    copy(peer.fc1, **params["project"])
    for i in range(2):
        layer, ours = peer.layers[i], params[f"layer_{i}"]
        ours |= {
            "taps": 0 * ours["taps"],
            "out": {"kernel": np.eye(W, dtype=np.float32), "bias": np.zeros(W, np.float32)},
        }
        copy(layer.att_module.qkv_nn, ours["qkv"]["kernel"])
        copy(layer.norm1, ours["norm"]["scale"], ours["norm"]["bias"])
    with torch.no_grad():
        peer.cls_token.copy_(torch.tensor(params["class_token"][None]))
        for size, layer in zip(
            (7, 5, 3), (peer.pos_layer.proj, peer.pos_layer.proj1, peer.pos_layer.proj2), strict=True
        ):
            layer.weight.copy_(torch.tensor(params["positions"][f"kernel_{size}"].transpose(3, 2, 0, 1)))
            layer.bias.copy_(torch.tensor(params["positions"][f"bias_{size}"]))
    copy(peer.norm, params["norm"]["scale"], params["norm"]["bias"])
    copy(peer.classifier, head)

    def forward(bag: Any, mask: Any) -> tuple[Any, Any]:
        value, weights = peer(bag, return_att=True)
        positive = weights.clamp(min=0)
        return value, positive / positive.sum()

    return Pair(ours_of(pooling, params, lambda out: (out.embedding @ head)[0]), theirs_of(forward))


def dtfd(draw: np.random.Generator) -> Pair:
    """DTFD with aggregated features, 3 pseudo-bags; torchmil's other modes hand on all instances of a pseudo-bag."""
    import torch
    import torchmil.models as peers

    groups = 3
    pooling, peer = DTFDPooling(2, A, groups, "embedding"), peers.DTFDMIL((D,), A, groups, "afs")
    params, head = draw_params(pooling, draw), draw.normal(size=(D, 1)).astype(np.float32)
    for tier, pool in (("tier_1", peer.attention_pool), ("tier_2", peer.u_attention_pool)):
        params[tier]["U"]["kernel"] *= 0
        copy_attention(pool, params[tier], 0.5)
    kernel, bias = params["classifier"]["kernel"], params["classifier"]["bias"]
    copy(peer.classifier, kernel[:, 1:] - kernel[:, :1], bias[1:] - bias[:1])
    copy(peer.u_classifier, head)

    def dealt(instances: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            scores = peer.attention_pool(torch.tensor(instances[None]), return_att=True)[1][0].numpy()
        order = np.argsort(-scores)
        return np.concatenate([order[part::groups] for part in range(groups)])

    def forward(bag: Any, mask: Any) -> tuple[Any, Any]:
        with patch("numpy.random.shuffle"):
            return peer(bag, mask), torch.zeros(bag.shape[1])

    def loss(bag: Any, mask: Any) -> Any:
        with patch("numpy.random.shuffle"):
            return list(peer.compute_loss(torch.ones(1), bag, mask)[1].values())[1]

    own = lambda out: pooling.loss(out, jnp.int32(1))  # noqa: E731
    both = ours_of(pooling, params, lambda out: (out.embedding @ head)[0], own)
    without = lambda *given: {name: part for name, part in both(*given).items() if name != "attention"}  # noqa: E731
    return Pair(without, theirs_of(forward, loss), dealt)


PAIRS: dict[str, Callable[[np.random.Generator], Pair]] = {
    "attention (ABMIL)": lambda draw: attention(draw, gated=False),
    "gated attention (ABMIL)": lambda draw: attention(draw, gated=True),
    "CLAM-SB": clam,
    "DSMIL": dsmil,
    "TransMIL, 5 landmarks": lambda draw: transmil(draw, landmarks=5),
    "TransMIL, 10 landmarks": lambda draw: transmil(draw, landmarks=10),
    "DTFD": dtfd,
}

if __name__ == "__main__":
    cli.command(Config, main, __doc__)
