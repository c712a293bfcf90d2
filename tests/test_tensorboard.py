"""Event files: TensorBoard's own reader finds what was written, and neither TensorFlow nor PyTorch is asked for."""

import io
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from conftest import message_of
from PIL import Image

from mil_jax.run import tensorboard
from mil_jax.run.folder import open_run
from mil_jax.run.saved import FinishedRun, load_finished

EPOCHS = (3, 2)  # of each member


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run of two members, made up, of which the second stops earlier; each bag has one positive instance."""
    rng, path, picture = np.random.default_rng(0), tmp_path_factory.mktemp("run") / "run", io.BytesIO()
    truth = np.tile(np.array([1, 0, 0, -1], np.int32), (10, 1))
    members = [{"seed": 0, "best_epoch": 2}, {"seed": 1, "best_epoch": 1}]
    Image.new("L", (31, 17), 200).save(picture, "PNG")
    with open_run(path, {"options": {}, "data": {}}, {}) as run:
        for epoch in range(1, max(EPOCHS) + 1):
            run.log(
                {"epoch": epoch, "member": i, "val_loss": float(rng.random()), "undefined": None if i else 0.5}
                for i in range(2) if epoch <= EPOCHS[i]
            )  # fmt: skip
        run.write_json("summary.json", {"members": members, "mean": {}, "standard_deviation": {}, "ensemble": {}})
        weight = rng.dirichlet(np.ones(4), (2, 10)).astype(np.float32)
        run.write_arrays("attention.npz", attention=weight, instance_label=truth, mask=truth >= 0)
        run.write_bytes("figures/some_figure.png", picture.getvalue())
    return load_finished(path)


# In a process of its own: what the reader imports warns of itself, and would be TensorFlow where there is one.
READ = """
import json, pathlib, sys, types
from mil_jax.run import saved, tensorboard
files = tensorboard.event_files(saved.load_finished(sys.argv[1]))
assert not {"tensorflow", "torch"} & set(sys.modules)
sys.modules["tensorboard.compat.notf"] = types.ModuleType("notf")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = {}
for name, content in files.items():
    path = pathlib.Path(sys.argv[2]) / name
    path.parent.mkdir()
    path.write_bytes(content)
    events = EventAccumulator(str(path.parent), {"scalars": 0, "histograms": 0, "images": 0}).Reload()
    tags = events.Tags()
    found[path.parent.name] = {
        "scalars": {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]},
        "histograms": {tag: [(e.step, e.histogram_value.num, e.histogram_value.sum, sum(e.histogram_value.bucket),
            e.histogram_value.bucket_limit[-1]) for e in events.Histograms(tag)] for tag in tags["histograms"]},
        "images": {tag: [(e.step, e.width, e.height, e.encoded_image_string.hex()) for e in events.Images(tag)]
            for tag in tags["images"]},
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def read(run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What TensorBoard reads."""
    command = [sys.executable, "-c", READ, str(run.path), str(tmp_path_factory.mktemp("events"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_scalars_of_every_epoch_and_member(run, read):
    assert set(read) == {"mean", "member_000", "member_001"}
    for member in range(2):
        expected = [(line["epoch"], line["val_loss"]) for line in run.log if line["member"] == member]
        np.testing.assert_allclose(read[f"member_{member:03d}"]["scalars"]["val_loss"], expected, rtol=1e-6)
    assert "undefined" not in read["member_001"]["scalars"]
    for step, value in read["mean"]["scalars"]["val_loss"]:
        in_epoch = [line["val_loss"] for line in run.log if line["epoch"] == step]
        assert value == pytest.approx(np.mean(in_epoch), rel=1e-6)
    assert read["mean"]["scalars"]["undefined"] == [[1, 0.5], [2, 0.5], [3, 0.5]]


def test_the_histograms(run, read):
    weight = run.arrays["attention"]
    for member, best_epoch in ((0, 2), (1, 1)):
        for name, values in (
            ("positive_instances", weight[member, :, 0]),
            ("other_instances", weight[member, :, 1:3]),
            ("largest_of_bag", weight[member, :, :3].max(axis=1)),
        ):
            [found] = read[f"member_{member:03d}"]["histograms"][f"attention/{name}"]
            expected = (best_epoch, values.size, values.sum(), values.size, values.max())
            assert found == pytest.approx(expected, rel=1e-6)
    assert [found[:2] for found in read["mean"]["histograms"]["members/val_loss"]] == [[1, 2], [2, 2]]
    value = tensorboard.histogram("tag", np.array([np.nan, np.inf]))
    assert value.histo.num == 0 and list(value.histo.bucket) == [0, 0]


def test_the_figures(run, read):
    [(step, width, height, content)] = read["mean"]["images"]["figures/some_figure"]
    assert (step, width, height) == (3, 31, 17)
    assert bytes.fromhex(content) == (run.path / "figures" / "some_figure.png").read_bytes()


def test_the_same_run_gives_the_same_bytes_and_needs_the_package(run, monkeypatch):
    """However often it is written, nothing is repeated."""
    assert tensorboard.event_files(run) == tensorboard.event_files(run)
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    assert "mil_jax[tensorboard]" in message_of(tensorboard.event_files, run)
