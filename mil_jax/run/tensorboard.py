"""A finished run as event files for TensorBoard, whose package has its address here; neither TensorFlow nor PyTorch.

TensorBoard takes each folder for a run, and lays the curves of the same name over each other:

```
mean/         scalars: mean over the members that train in that epoch; histograms: how they spread; the figures
member_000/   scalars of the member at each epoch; histograms of its attention on the test bags, at its best epoch
```

The files are made from the complete run folder, so that a run that was resumed repeats nothing. The package is an
extra: it is imported when it is used.
"""

import io
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Num

from mil_jax.errors import InputError
from mil_jax.run.saved import FinishedRun

FILE_NAME = "events.out.tfevents.0.mil_jax"  # TensorBoard looks for `tfevents`
NOT_SCALARS = ("epoch", "member")
BUCKETS = 30
PNG_SIZE = slice(16, 24)  # width and height, in the header of a PNG file

Line = Mapping[str, Any]


def check_installed() -> None:
    """Refuses, by an InputError that names the extra, to go on without the package."""
    protos()


def protos() -> tuple[Any, Any]:
    """The package's modules of events and of summaries."""
    try:
        import tensorboard.compat.proto.event_pb2 as event_pb2
        import tensorboard.compat.proto.summary_pb2 as summary_pb2
    except ImportError:
        raise InputError("tensorboard", True, "expected its package: pip install 'mil_jax[tensorboard]'") from None
    return event_pb2, summary_pb2  # without types: the modules make their classes as they are imported


def event_files(run: FinishedRun) -> dict[str, bytes]:
    """The event files of a run, by their names in the log folder; the same folder gives the same bytes."""
    moment = (run.path / "metrics.jsonl").stat().st_mtime
    folders = {"mean": mean_values(run.log) + figure_values(run)}
    for row in run.summary.members:
        number = row["seed"]
        scalars = [(line["epoch"], scalar(name, line[name])) for line in run.log if line["member"] == number
                   for name in scalar_names(line)]  # fmt: skip
        folders[f"member_{number:03d}"] = scalars + attention_values(run.arrays, number, row["best_epoch"])
    return {f"{folder}/{FILE_NAME}": encode(values, moment) for folder, values in folders.items()}


def scalar_names(line: Line) -> list[str]:
    """The numbers of a line of the log; one that is not defined is left out."""
    return [name for name, value in line.items() if name not in NOT_SCALARS and value is not None]


def mean_values(log: Sequence[Line]) -> list[tuple[int, Any]]:
    """Of each epoch, the mean of each number over the members that train in it, and its histogram over them."""
    epochs: dict[int, list[Line]] = {}
    for line in log:
        epochs.setdefault(line["epoch"], []).append(line)
    means = []
    for epoch, lines in epochs.items():
        for name in scalar_names(lines[0]):
            values = np.array([line[name] for line in lines if line[name] is not None])
            means.append((epoch, scalar(name, float(values.mean()))))
            if len(lines) > 1:
                means.append((epoch, histogram(f"members/{name}", values)))
    return means


def attention_values(arrays: Mapping[str, np.ndarray], member: int, epoch: int) -> list[tuple[int, Any]]:
    """Histograms of a member's weights on the test bags: of positive instances, of others, of whole bags' largest."""
    weight, truth = arrays["attention"][member], arrays["instance_label"]
    mask = arrays["mask"] if "mask" in arrays else np.ones(truth.shape, bool)
    groups = {
        "positive_instances": weight[mask & (truth == 1)],
        "other_instances": weight[mask & (truth != 1)],
        "largest_of_bag": np.where(mask, weight, 0).max(axis=1),
    }
    return [(epoch, histogram(f"attention/{name}", values)) for name, values in groups.items() if len(values)]


def figure_values(run: FinishedRun) -> list[tuple[int, Any]]:
    """The figures of the run folder, at its last epoch."""
    last = max((line["epoch"] for line in run.log), default=0)
    files = sorted((run.path / "figures").glob("*.png"))
    return [(last, image(f"figures/{file.stem}", file.read_bytes())) for file in files]


# ---- values of a summary, in the forms that all of TensorBoard's readers know ----


def scalar(tag: str, value: float) -> Any:
    """A number."""
    return protos()[1].Summary.Value(tag=tag, simple_value=value)


def histogram(tag: str, values: Num[np.ndarray, " values"]) -> Any:
    """How many of the finite values are in each of 30 equal ranges; one range where all values are the same."""
    _, summaries = protos()
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    count, edges = np.histogram(finite, BUCKETS if high > low else 1, (low, high))
    # TensorBoard reads the limits as the upper ends of ranges of which the first starts at -infinity.
    limits, counts = [low, *edges[1:].tolist()], [0.0, *count.tolist()]
    moments = {"num": len(finite), "sum": float(finite.sum()), "sum_squares": float((finite**2).sum())}
    histo = summaries.HistogramProto(min=low, max=high, **moments, bucket_limit=limits, bucket=counts)
    return summaries.Summary.Value(tag=tag, histo=histo)


def image(tag: str, png: bytes) -> Any:
    """A picture, as the bytes of a PNG file."""
    _, summaries = protos()
    width, height = struct.unpack(">II", png[PNG_SIZE])
    picture = summaries.Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
    return summaries.Summary.Value(tag=tag, image=picture)


def encode(values: Sequence[tuple[int, Any]], moment: float) -> bytes:
    """An event file, with an event for each step, of (step, value of a summary), at a moment in seconds since 1970."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    events, summaries = protos()
    steps: dict[int, list[Any]] = {}
    for step, value in values:
        steps.setdefault(step, []).append(value)
    file = io.BytesIO()
    writer = RecordWriter(file)
    writer.write(events.Event(wall_time=moment, file_version="brain.Event:2").SerializeToString())
    for step in sorted(steps):
        event = events.Event(wall_time=moment, step=step, summary=summaries.Summary(value=steps[step]))
        writer.write(event.SerializeToString())
    return file.getvalue()
