"""Packed cohorts: the same bags as from the files; whole or absent; what is damaged is named."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import assert_same_bits, message_of

from mil_jax.datasets.cohort import BagSource, Cohort, cohort_of_arrays, load_cohort
from mil_jax.datasets.pack import load_packed, pack, verify
from mil_jax.errors import InputError, RunError


def made_up(dtype: Any = np.float16, unit: str = "px", shape: tuple[int, ...] = (5,)) -> Cohort:
    draw, sources = np.random.default_rng(0), []
    for i in range(4):
        x = draw.normal(size=(1 + 3 * i, *shape)).astype(dtype)
        position = draw.uniform(size=(len(x), 2)).astype(np.float32) if unit else None
        sources.append(BagSource(name=f"bag {i}", group=f"p{i // 2}", label=i % 2, arrays=(x, position), split="train"))
    truth = (np.arange(22) % 3 - 1).astype(np.int32) if unit else None
    return cohort_of_arrays("made up", sources, ("a", "b"), unit=unit, patch_size=256.0, instance_label=truth)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("unit", ["px", ""])
def test_a_packed_cohort_is_the_cohort(dtype: Any, unit: str, tmp_path: Path) -> None:
    cohort = made_up(dtype, unit)
    folder = pack(cohort, tmp_path / "packed")
    for packed in (load_packed(folder), load_cohort(folder)):
        for name in ("name", "class_names", "shape", "dtype", "unit", "patch_size", "groups", "bag_names", "split"):
            assert getattr(packed, name) == getattr(cohort, name)
        assert_same_bits(packed.label, cohort.label)
        for one, other in zip(packed.bags, cohort.bags, strict=True):
            assert one.size == other.size
            assert_same_bits(one.read(), other.read())
        assert (packed.instance_label is None) == (not unit)
        assert_same_bits(packed.instance_label, cohort.instance_label)
        verify(packed)
    assert all(bag["offset"] % 64 == 0 for bag in json.loads((folder / "manifest.json").read_text())["bags"])
    assert (folder / "positions.bin").exists() == bool(unit)
    assert pack(load_packed(folder), tmp_path / "again").is_dir()
    assert (folder / "features.bin").read_bytes() == (tmp_path / "again" / "features.bin").read_bytes()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(RunError, match="No space left"):
        patch.setattr(os, "fsync", full)
        pack(made_up(), tmp_path / "packed")
    broken = made_up()
    broken.bags[2].arrays[0][1, 1] = np.inf  # type: ignore[index]
    with pytest.raises(InputError, match="bag 2"):
        pack(broken, tmp_path / "packed")
    assert not [*tmp_path.iterdir()]


def test_what_is_damaged_is_named(tmp_path: Path) -> None:
    assert "manifest.json" in message_of(load_packed, tmp_path / "nowhere")
    folder = pack(made_up(), tmp_path / "packed")
    assert "expected a new folder" in message_of(pack, made_up(), folder)
    features, cohort = folder / "features.bin", load_packed(folder)
    whole = features.read_bytes()
    features.write_bytes(whole[:100] + b"!" + whole[101:])
    assert "expected bag 'bag 1' as it was written" in message_of(verify, load_packed(folder))
    features.write_bytes(whole[:-1])
    assert "bytes, as the manifest says" in message_of(load_packed, folder)
    assert "features.bin" in message_of(cohort.bags[3].read), "cut off while it is in use"
    features.unlink()
    assert "No such file" in message_of(cohort.bags[0].read)
    manifest = folder / "manifest.json"
    for text, part in (('{"format": 2}', "expected format 1, got 2"), ("{", "manifest"), ('{"format": 1}', "KeyError")):
        manifest.write_text(text)
        assert part in message_of(load_packed, folder)
