r"""Which nuclei make an image of colon tissue epithelial, when only the image has a label?

The colon experiment of the paper (Ilse et al. 2018): a bag is an image, an instance the 27x27 patch around a nucleus,
and a bag is positive if it holds an epithelial nucleus. Ten folds; epoch and threshold are chosen on a validation part
of the training folds; attention is judged against the true classes of the nuclei.

    python experiments/colon.py --data-dir FOLDER                                               (quick settings)
    python experiments/colon.py --data-dir FOLDER --epochs 100 --patience 25 --repeats 5 \
        --learning-rates 1e-4                                                                  (long)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax import datasets, metrics, plots
from mil_jax.arrays import bags_from_set
from mil_jax.attention import attention_stats
from mil_jax.augment import augment_bag
from mil_jax.bags import Bags
from mil_jax.datasets import BagSet
from mil_jax.errors import InputError
from mil_jax.model import Encoder, Pooling, build
from mil_jax.pooling import masked_softmax
from mil_jax.protocols import Crossed, Folds, split_bags
from mil_jax.run import cli
from mil_jax.run.config import aside
from mil_jax.run.cross_validation import FoldsConfig, mean_of_repeats, train_folds
from mil_jax.run.screen import say
from mil_jax.run.search import Search
from mil_jax.run.study import Measurement, Row, Rows, begin, open_study, print_rows, summary_row
from mil_jax.sampling import Splits
from mil_jax.training import FitConfig


@dataclass(frozen=True)
class Config(FoldsConfig):
    """Options of the experiment; the network is the paper's."""

    encoder: ClassVar[Encoder] = "colon"

    data_dir: Path | None = aside(None)
    """The folder with images/ and nuclei.csv."""
    poolings: tuple[Pooling, ...] = ("attention", "gated_attention")
    repeats: int = 1
    """Draws of folds."""
    hidden: tuple[int, ...] = (512, 512)
    """Widths of the dense layers behind the convolutions."""
    dropout: float = 0.5
    augment: bool = True
    """Turn, mirror and re-stain patches in training."""
    fit: FitConfig = FitConfig(epochs=12, patience=6)
    search: Search = Search("raw", learning_rates=(3e-4,), weight_decays=(5e-4,), class_weights=False)


def main(config: Config) -> Path:
    """Runs the experiment and returns its folder."""
    if config.data_dir is None:
        raise InputError("data_dir", None, "expected the folder that holds images/ and nuclei.csv")
    study = begin("colon", __doc__, config, config.folds * config.repeats)
    data = datasets.load_colon(config.data_dir)
    key_folds, key_members = jax.random.split(jax.random.key(config.seed))
    folds = config.draw_folds(key_folds, data.label)
    splits = split_bags(bags_from_set(data), folds)
    with open_study(study, {"colon": data.content_hash}) as run:
        table = Rows(study, run)
        rows = [table.add(measure, data, pooling, key_members, folds, splits) for pooling in config.poolings]
        run.write_json("summary.json", {"rows": rows})
    print_rows("Test folds, images", rows, ("pooling",), ("accuracy", "precision", "recall", "f1", "auc"))
    print_rows("Test folds, nuclei", rows, ("pooling",), NUCLEUS_SCORES)
    say(f"folder: {run.path}")
    return run.path


def measure(study: Measurement, data: BagSet, pooling: Pooling, key: jax.Array, folds: Folds, splits: Splits) -> Row:
    """One row: a pooling; with the picture of an image."""
    config = study.config
    mil = build(config.network(pooling), augment=augment_bag if config.augment else None)
    found = train_folds(study, mil, key, splits, folds, f"colon, {pooling}")
    crossed = found.crossed
    scores = crossed.scores() | nucleus_scores(crossed, splits.test, config.repeats)
    scores["best_epoch"] = mean_of_repeats(found.kept.best_epoch, config.repeats)
    row = summary_row({"pooling": pooling}, scores, {"accuracy": crossed.right})
    study.run.write_figure(f"image_{pooling}", draw_image(data, folds, splits.test, crossed))
    return row | found.columns()


NUCLEUS_SCORES = ("nucleus_auc", "score_nucleus_auc", "pooled_nucleus_auc")


def nucleus_scores(crossed: Crossed, test: Bags, repeats: int) -> dict[str, np.ndarray]:
    """How well nuclei are ranked by their true class, [R]: inside each image with both kinds, and over all images.

    `nucleus_auc` and `score_nucleus_auc` are means over images of the AUC of the attention and of the classifier's
    scores of instances; `pooled_nucleus_auc` is the latter's over all nuclei of the test images at once.
    """
    weights = {
        "nucleus_auc": jnp.asarray(crossed.test.attention),
        "score_nucleus_auc": jax.vmap(jax.vmap(masked_softmax))(jnp.asarray(crossed.test.scores), test.mask),
    }
    scores = {
        name: np.nanmean(auc_of_bags(weight, test).reshape(repeats, -1), axis=1) for name, weight in weights.items()
    }
    known = np.asarray(test.instance_label) >= 0
    pooled = [
        float(metrics.roc_auc(jnp.asarray(score[of_known]), jnp.asarray(truth[of_known])))
        for score, truth, of_known in zip(
            *(np.split(np.asarray(part), repeats) for part in (crossed.test.scores, test.instance_label, known)),
            strict=True,
        )
    ]
    return scores | {"pooled_nucleus_auc": np.array(pooled)}


def auc_of_bags(weight: jax.Array, test: Bags) -> np.ndarray:
    """The AUC of the weights against the nuclei's classes in each bag [S, W]; NaN where there is one class alone."""
    stats = jax.vmap(jax.vmap(attention_stats))(weight, test.mask, test.instance_label)
    return np.where(np.asarray(stats.has_both) > 0, np.asarray(stats.instance_auc), np.nan)


def draw_image(data: BagSet, folds: Folds, test: Bags, crossed: Crossed) -> Any:
    """The positive test image whose attention has the median AUC: not the best one, and not the worst."""
    auc = auc_of_bags(jnp.asarray(crossed.test.attention), test)
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
