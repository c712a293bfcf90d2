"""Event files: TensorBoard's own reader finds what was written, and neither TensorFlow nor PyTorch is asked for."""

import builtins
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mil_jax import runs, tensorboard_log
from mil_jax.errors import InputError

EPOCHS = (3, 2)  # of each member


def make_run(path: Path) -> runs.FinishedRun:
    """A run of two members, made up, of which the second stops earlier; each bag has one positive instance."""
    rng = np.random.default_rng(0)
    weight = rng.dirichlet(np.ones(4), (2, 10)).astype(np.float32)
    with runs.open_run(path, {"options": {}}, {}) as run:
        for epoch in range(1, max(EPOCHS) + 1):
            run.log(
                {"epoch": epoch, "member": i, "val_loss": float(rng.random()), "undefined": None if i else 0.5}
                for i in range(2)
                if epoch <= EPOCHS[i]
            )
        run.write_json("summary.json", {"members": [{"seed": 0, "best_epoch": 2}, {"seed": 1, "best_epoch": 1}]})
        truth = np.tile(np.array([1, 0, 0, -1], np.int32), (10, 1))
        run.write_arrays("attention.npz", attention=weight, instance_label=truth, mask=truth >= 0)
        file = io.BytesIO()
        Image.new("L", (31, 17), 200).save(file, "PNG")
        run.write_bytes("figures/some_figure.png", file.getvalue())
    return runs.load_finished(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> runs.FinishedRun:
    return make_run(tmp_path_factory.mktemp("run") / "run")


READ = """
import json, sys, types
sys.modules["tensorboard.compat.notf"] = types.ModuleType("notf")  # or it would import TensorFlow, where there is one
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = {}
for folder in sys.argv[1:]:
    events = EventAccumulator(folder, {"scalars": 0, "histograms": 0, "images": 0}).Reload()
    tags = events.Tags()
    found[folder.rsplit("/", 1)[-1]] = {
        "scalars": {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]},
        "histograms": {tag: [(e.step, e.histogram_value.num, e.histogram_value.sum, sum(e.histogram_value.bucket),
            e.histogram_value.bucket_limit[-1]) for e in events.Histograms(tag)] for tag in tags["histograms"]},
        "images": {tag: [(e.step, e.width, e.height, e.encoded_image_string.hex()) for e in events.Images(tag)]
            for tag in tags["images"]},
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def read(run: runs.FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What TensorBoard reads; in a process of its own, for what it imports warns of itself."""
    folder = tmp_path_factory.mktemp("events")
    for name, content in tensorboard_log.event_files(run).items():
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(content)
    command = [sys.executable, "-c", READ, *(str(each) for each in sorted(folder.iterdir()))]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_the_scalars_of_every_epoch_and_member(run: runs.FinishedRun, read: dict[str, Any]) -> None:
    assert set(read) == {"mean", "member_000", "member_001"}
    for member in range(2):
        expected = [(line["epoch"], line["val_loss"]) for line in run.log if line["member"] == member]
        found = read[f"member_{member:03d}"]["scalars"]["val_loss"]
        assert [step for step, _ in found] == [step for step, _ in expected]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert "undefined" not in read["member_001"]["scalars"]
    for step, value in read["mean"]["scalars"]["val_loss"]:
        in_epoch = [line["val_loss"] for line in run.log if line["epoch"] == step]
        assert value == pytest.approx(np.mean(in_epoch), rel=1e-6)
    assert read["mean"]["scalars"]["undefined"] == [[1, 0.5], [2, 0.5], [3, 0.5]]


def test_the_histograms(run: runs.FinishedRun, read: dict[str, Any]) -> None:
    weight = run.arrays["attention"]
    for member, best_epoch in ((0, 2), (1, 1)):
        histograms = read[f"member_{member:03d}"]["histograms"]
        for name, values in (
            ("positive_instances", weight[member, :, 0]),
            ("other_instances", weight[member, :, 1:3]),
            ("largest_of_bag", weight[member, :, :3].max(axis=1)),
        ):
            [(step, count, total, in_buckets, last)] = histograms[f"attention/{name}"]
            assert (step, count, in_buckets) == (best_epoch, values.size, values.size)
            assert total == pytest.approx(values.sum(), rel=1e-6)
            assert last == pytest.approx(values.max(), rel=1e-6)
    assert [each[:2] for each in read["mean"]["histograms"]["members/val_loss"]] == [[1, 2], [2, 2]]


def test_the_figures(run: runs.FinishedRun, read: dict[str, Any]) -> None:
    [(step, width, height, content)] = read["mean"]["images"]["figures/some_figure"]
    assert (step, width, height) == (3, 31, 17)
    assert bytes.fromhex(content) == (run.path / "figures" / "some_figure.png").read_bytes()


def test_the_same_run_gives_the_same_bytes(run: runs.FinishedRun) -> None:
    """However often it is written, nothing is repeated."""
    assert tensorboard_log.event_files(run) == tensorboard_log.event_files(run)


def test_values_that_are_no_numbers() -> None:
    value = tensorboard_log.histogram("tag", np.array([np.nan, np.inf]))
    assert value.histo.num == 0 and list(value.histo.bucket) == [0, 0]


def test_without_the_package(run: runs.FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    own_import = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("tensorboard"):
            raise ImportError(name)
        return own_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"mil_jax\[tensorboard\]"):
        tensorboard_log.event_files(run)


def test_neither_tensorflow_nor_pytorch_is_imported(run: runs.FinishedRun) -> None:
    code = (
        "import sys; from mil_jax import runs, tensorboard_log;"
        f"tensorboard_log.event_files(runs.load_finished({str(run.path)!r}));"
        "print({'tensorflow', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
