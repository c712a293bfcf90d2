"""The builder with which TensorFlow Datasets (TFDS) prepares a set of four IDX files. Importing it imports TFDS."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.units import Size

from mil_jax.datasets import idx
from mil_jax.datasets.idx_sets import IdxSet


@dataclasses.dataclass(eq=False, kw_only=True)
class IdxConfig(tfds.core.BuilderConfig):
    """The choice of one IDX set: what TFDS calls the configuration of a builder."""

    idx_set: IdxSet


with registered.skip_registration():

    class MilJaxIdx(tfds.core.GeneratorBasedBuilder):
        """Prepares the images of four IDX files, in their order, without TensorFlow.

        Stock TFDS has builders of the same sets, which need it; by its own name, this one can share their folder.
        """

        VERSION = tfds.core.Version("1.0.0")

        @property
        def idx_set(self) -> IdxSet:
            """The set that this builder prepares."""
            assert isinstance(self.builder_config, IdxConfig)
            return self.builder_config.idx_set

        @property
        def url_infos(self) -> dict[str, checksums.UrlInfo]:  # pyright: ignore[reportIncompatibleVariableOverride]
            """What TFDS checks a file against, by the file's address."""
            return {
                self.idx_set.base_url + file.name: checksums.UrlInfo(Size(file.size), file.sha256, file.name)
                for file in self.idx_set.files
            }

        def _info(self) -> tfds.core.DatasetInfo:
            # A feature of type Image would need TensorFlow to write its PNG.
            image = tfds.features.Tensor(shape=self.idx_set.image_shape, dtype=np.uint8, encoding="zlib")
            label = tfds.features.ClassLabel(names=list(self.idx_set.class_names))
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"{self.idx_set.title}: grey images and their labels.",
                features=tfds.features.FeaturesDict({"image": image, "label": label}),
                supervised_keys=("image", "label"),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
            # One after the other: when one fails, no other is still being written.
            paths = {name: dl_manager.download(self.idx_set.base_url + name) for name in idx.FILES}
            return {
                "train": self._generate_examples(paths[idx.TRAIN_IMAGES], paths[idx.TRAIN_LABELS]),
                "test": self._generate_examples(paths[idx.TEST_IMAGES], paths[idx.TEST_LABELS]),
            }

        def _generate_examples(self, images: Any, labels: Any) -> Iterator[tuple[int, dict]]:
            pool = idx.read_instances(Path(images), Path(labels), len(self.idx_set.class_names))
            for row, (image, label) in enumerate(zip(pool.x, pool.label, strict=True)):
                yield row, {"image": image, "label": int(label)}
