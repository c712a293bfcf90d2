r"""Which nuclei make an image of colon tissue epithelial, when only the image has a label?

The colon experiment of the paper (Ilse et al. 2018): a bag is an image, an instance the 27x27 patch around a nucleus,
and a bag is positive if it holds an epithelial nucleus. Ten folds; epoch and threshold are chosen on a validation part
of the training folds; attention is judged against the true classes of the nuclei.

    python experiments/colon.py --data-dir FOLDER                                               (quick settings)
    python experiments/colon.py --data-dir FOLDER --epochs 100 --patience 25 --repeats 5 \
        --learning-rate 1e-4                                                                   (long)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import study
from study import Crossed

from mil_jax import augment, bags, cli, datasets, metrics, model, plots, pooling, protocols, training
from mil_jax.attention import attention_stats
from mil_jax.bags import Bags, Splits
from mil_jax.cli import Compute, ComputeOptions
from mil_jax.datasets import BagSet
from mil_jax.errors import InputError
from mil_jax.model import MIL, Pooling
from mil_jax.protocols import Folds
from mil_jax.training import FitConfig


@dataclass(frozen=True)
class Config:
    """Options of the experiment; the network is the paper's."""

    data_dir: Path | None = None
    """The folder with images/ and nuclei.csv."""
    poolings: tuple[Pooling, ...] = ("attention", "gated_attention")
    """Which poolings."""
    repeats: int = 1
    """Draws of folds."""
    folds: int = 10
    """Parts that the images are cut into; each is the test set once."""
    val_share: float = 0.15
    """Share of the images outside the test fold that the epoch and the threshold are chosen on."""
    seed: int = 0
    """Decides folds, initial parameters, orders of bags, augmentation and dropout."""
    hidden: tuple[int, ...] = (512, 512)
    """Widths of the dense layers behind the convolutions."""
    attention_units: int = 128
    """Width of the attention's hidden layer."""
    dropout: float = 0.5
    """Share of the dense layers' units that a step drops."""
    augment: bool = True
    """Turn, mirror and re-stain patches in training."""
    epochs: int = 12
    """The most epochs that a member trains for."""
    patience: int = 6
    """A member stops after this many epochs without a better validation loss."""
    learning_rate: float = 3e-4
    """Of Adam."""
    weight_decay: float = 5e-4
    """Factor of every parameter in its gradient."""
    out: Path | None = None
    """The folder of results; a new one under runs/colon where not given."""
    compute: ComputeOptions = Compute()


def main(config: Config) -> Path:
    """Runs the experiment and returns its folder."""
    check(config)
    cli.start_jax(config.compute, config.folds * config.repeats)
    data = datasets.load_colon(config.data_dir or Path())
    key_folds, key_members = jax.random.split(jax.random.key(config.seed))
    folds = protocols.cross_validation(
        key_folds, data.label, folds=config.folds, repeats=config.repeats, val_share=config.val_share
    )
    splits = protocols.split_bags(bags.bags_from_set(data), folds)
    rows = []
    with study.open_study("colon", config, {"colon": data.content_hash}) as run:
        for each in config.poolings:
            row, crossed = measure(config, each, key_members, data, folds, splits)
            rows.append(row)
            run.write_csv("results.csv", rows)
            run.write_figure(f"image_{each}", draw_image(data, folds, splits.test, crossed))
        run.write_json("summary.json", {"rows": rows})
    scores = ("accuracy", "precision", "recall", "f1", "auc", "nucleus_auc", "score_nucleus_auc")
    study.print_rows("Test folds", rows, ("pooling",), scores)
    cli.say(f"folder: {run.path}")
    return run.path


def check(config: Config) -> None:
    """Refuses options that no later step would name well."""
    study.check_common(config)
    if config.data_dir is None:
        raise InputError("data_dir", None, "name the folder that holds images/ and nuclei.csv")
    for each in config.poolings:
        build(config, each)
    fit_config(config)


def build(config: Config, each: Pooling) -> MIL:
    return model.build(
        model.ModelConfig(
            encoder="colon", hidden=config.hidden, dropout=config.dropout, pooling=each,
            attention_units=config.attention_units, head="sum", output="sigmoid",
        )
    )  # fmt: skip


def fit_config(config: Config) -> FitConfig:
    return FitConfig(config.epochs, 1, config.patience, augment=augment.augment_bag if config.augment else None)


def measure(
    config: Config, each: Pooling, key: jax.Array, data: BagSet, folds: Folds, splits: Splits
) -> tuple[dict[str, Any], Crossed]:
    """The row of a pooling, and what its members say of their test images."""
    hyper = training.make_hyper(
        splits.train, learning_rate=config.learning_rate, l2=None, weight_decay=config.weight_decay, class_weights=False
    )
    mil, members = build(config, each), len(folds.test)
    trained, seconds = study.fit_members(
        mil, key, members, splits, fit_config(config), hyper, config.compute, f"colon, {each}"
    )
    crossed = study.judge_folds(mil, trained, splits, folds, data.label, config.repeats)
    right = (crossed.called == data.label).mean(axis=0)
    scores = study.scores_of(crossed) | nucleus_scores(crossed, splits.test, config.repeats)
    scores["best_epoch"] = study.mean_of_repeats(trained.best_epoch, config.repeats)
    return study.row_of({"pooling": each}, scores, members, seconds, {"accuracy": right}), crossed


def nucleus_scores(crossed: Crossed, test: Bags, repeats: int) -> dict[str, np.ndarray]:
    """How well nuclei are ranked by their true class, [R]: inside each image with both kinds, and over all images.

    `nucleus_auc` and `score_nucleus_auc` are means over images of the AUC of the attention and of the classifier's
    scores of instances; `pooled_nucleus_auc` is the latter's over all nuclei of the test images at once.
    """
    weights = {
        "nucleus_auc": jnp.asarray(crossed.test.attention),
        "score_nucleus_auc": jax.vmap(jax.vmap(pooling.masked_softmax))(jnp.asarray(crossed.test.scores), test.mask),
    }
    scores = {}
    for name, weight in weights.items():
        stats = jax.vmap(jax.vmap(attention_stats))(weight, test.mask, test.instance_label)
        auc = np.where(np.asarray(stats.has_both) > 0, np.asarray(stats.instance_auc), np.nan)
        scores[name] = np.nanmean(auc.reshape(repeats, -1), axis=1)
    known = np.asarray(test.instance_label) >= 0
    pooled = [
        float(metrics.roc_auc(jnp.asarray(score[held]), jnp.asarray(truth[held])))
        for score, truth, held in zip(
            *(np.split(np.asarray(part), repeats) for part in (crossed.test.scores, test.instance_label, known)),
            strict=True,
        )
    ]
    return scores | {"pooled_nucleus_auc": np.array(pooled)}


def draw_image(data: BagSet, folds: Folds, test: Bags, crossed: Crossed) -> Any:
    """The positive test image whose attention has the median AUC: not the best one, and not the worst."""
    stats = jax.vmap(jax.vmap(attention_stats))(jnp.asarray(crossed.test.attention), test.mask, test.instance_label)
    auc = np.where(np.asarray(stats.has_both) > 0, np.asarray(stats.instance_auc), np.nan)
    middle = np.nanargmin(np.abs(auc - np.nanmedian(auc)))
    member, place = np.unravel_index(middle, auc.shape)
    bag, size = folds.test[member, place], int(test.mask[member, place].sum())
    rows = np.asarray(test.rows[member, place, :size])
    assert data.position is not None
    return plots.patch_map(
        data.x[rows],
        data.position[rows],
        np.asarray(crossed.test.attention)[member, place, :size],
        np.asarray(test.instance_label[member, place, :size]) == 1,
        f"{data.bag_names[bag]}: {size} nuclei, AUC of the attention {auc[member, place]:.3f} (the median test image)",
    )


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
