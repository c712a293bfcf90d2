"""What a run is asked for: records that an experiment's config is composed of, and which of it decides the results.

A config nests records, each of which refuses values out of range; as options of a command they are flat. A field made
by `aside` does not decide what comes out (where data lie, where results go, on how many devices), and may change when a
run is resumed.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_type_hints

from mil_jax.datasets.cohort import Cohort, Columns, load_cohort
from mil_jax.errors import InputError, check_fields, check_whole
from mil_jax.model import ModelConfig
from mil_jax.optimizer import HyperConfig
from mil_jax.sampling import Splits
from mil_jax.training import FitConfig

DEFAULT_NAMES = ("negative", "positive")  # of two classes that have no names of their own


def aside(default: Any) -> Any:
    """A field of a config that does not decide the results."""
    return dataclasses.field(default=default, metadata={"aside": True})


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which labelled instances bags are drawn from."""

    dataset: str = "mnist-sample"
    """mnist-sample (embedded), mnist, fashion_mnist, kmnist, or tfds:NAME."""
    data_dir: Path | None = aside(None)
    """Where TensorFlow Datasets keeps prepared sets; its own default where not given."""
    manual_dir: Path | None = aside(None)
    """A folder, only read, with the canonical .gz files, for use without a network."""


@dataclasses.dataclass(frozen=True)
class FilesConfig:
    """Which files hold the bags, and what tables say of them."""

    features: Path | None = aside(None)
    """A folder with a file for each bag (.h5, .pt, .npy, .npz), a packed folder, or one CSV bag_label,bag_id,f1,f2,…"""
    table: Path | None = aside(None)
    """A CSV or .xlsx with a row for each bag."""
    slide_table: Path | None = aside(None)
    """A second one that tells which files are whose, such as STAMP's PATIENT,FILENAME."""
    slide_column: str | None = None
    """The column with the names of the files; found by itself where it has a usual name, as are the others."""
    label_column: str | None = None
    """The column with the labels."""
    group_column: str | None = None
    """The column with what must not be cut by a split, such as the patient."""
    split_column: str | None = None
    """The column that says train, val or test, where the table gives the split."""
    classes: tuple[str, ...] = ()
    """The labels in their order, the negative one first; in the order of the alphabet where not given."""
    slides: Literal["apart", "join"] = "apart"
    """Each file is a bag, or all files of a group are one."""
    missing: Literal["refuse", "skip"] = "refuse"
    """What to do about rows without a file and files without a row."""
    instance_labels: Path | None = aside(None)
    """A CSV slide_id,row,positive with the truth of instances, to judge the attention by."""

    def load(self) -> Cohort:
        """The cohort that they are.

        Raises:
            InputError: no features, or see `load_cohort`.
        """
        if self.features is None:
            raise InputError("features", None, "expected the folder of the files that the table names")
        names = (self.slide_column, self.label_column, self.group_column, self.split_column)
        return load_cohort(
            self.features, self.table, slide_table=self.slide_table, columns=Columns(*names, self.classes),
            slides=self.slides, missing=self.missing, instance_labels=self.instance_labels,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a run is computed: it decides what comes out no further than `placement.Placement` says."""

    devices: int | None = None
    """Devices that share the members; on a CPU one per core where not given, elsewhere all."""
    together: int | None = None
    """Members at once in a device; where not given, 1 on a CPU, elsewhere all that the device got."""
    checkpoint_every: int = 1
    """Epochs between two checkpoints of the whole run; 0 for none."""
    resume: bool = False
    """Go on with the run in --out, with the options that it was started with."""
    compilation_cache: str = "auto"
    """Folder for compiled programs, 'auto' for one in the user's cache folder, or 'off'."""
    distributed: bool = False
    """Join the other processes of the run, as SLURM, Kubernetes or a TPU pod tells them."""
    coordinator: str | None = None
    """Join them by hand: address and port of the first process, such as 10.0.0.1:12345."""
    processes: int | None = None
    """Their number, with --coordinator."""
    process_id: int | None = None
    """Which of them this is, from 0, with --coordinator."""
    heartbeat: int = 30
    """Seconds without a sign of life after which a process counts as dead."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_whole("checkpoint_every", self.checkpoint_every, 0)
        for name in ("devices", "together", "processes", "heartbeat"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        if self.devices is not None and self.processes is not None and self.devices < self.processes:
            raise InputError("devices", self.devices, f"expected at least {self.processes}, one for each process")


@dataclasses.dataclass(frozen=True)
class MembersConfig:
    """What a run of members is asked for besides its bags and the numbers that they train with."""

    seed: int = 0
    """Decides everything that is drawn: bags, initial parameters, orders of bags."""
    members: int = 1
    """Models that differ by their keys; they form the ensemble."""
    vary: str = "init,order"
    """What the key of a member decides, of init, order, bags; the rest is the same for all members."""
    model: ModelConfig = ModelConfig()
    fit: FitConfig = FitConfig()
    plot_bags: int = aside(3)
    """Bags per class in the figures of bags; 0 for no such figures."""
    report: bool = aside(True)
    """Write report.html: settings, tables, figures, and the test bags to browse, on one page."""
    tensorboard: bool = aside(False)
    """Write event files for TensorBoard, which must be installed: pip install 'mil_jax[tensorboard]'."""
    out: Path | str | None = aside(None)  # in this order: an option is a path
    """The run folder; a new one under runs/ where not given."""
    compute: Compute = aside(Compute())

    def __post_init__(self) -> None:
        check_fields(self)
        check_seed(self.seed)
        check_whole("members", self.members, 1)
        check_whole("plot_bags", self.plot_bags, 0)
        check_out(self.out)
        parts = self.varied
        if not parts or not parts <= {"init", "order", "bags"}:
            raise InputError("vary", self.vary, "expected one or more of init, order, bags, with commas between them")

    @property
    def varied(self) -> set[str]:
        """What differs between members."""
        return set(filter(None, str(self.vary).split(",")))


@dataclasses.dataclass(frozen=True)
class RunConfig(MembersConfig):
    """What a run is asked for besides its bags; the defaults are the Keras example's."""

    hyper: HyperConfig = HyperConfig()


@dataclasses.dataclass(frozen=True)
class Problem:
    """What the bags of a run are."""

    name: str
    """What tables and figures call them."""
    splits: Splits
    """Bags to learn from, to choose on, and to judge on."""
    class_names: tuple[str, ...] = DEFAULT_NAMES
    """A name for each class."""
    content_hash: str = ""
    """Of what they were drawn from, so that a run is not resumed on other data; of the bags themselves where not
    given."""
    experiment: str = "own_bags"
    """What made the run."""

    def __post_init__(self) -> None:
        check_fields(self)
        if len(set(self.class_names)) < max(2, len(self.class_names)):
            raise InputError("class_names", self.class_names, "expected two or more different names")


def check_seed(seed: int) -> None:
    """Refuses, by an InputError, a seed that JAX would cut to 32 bits."""
    check_whole("seed", seed, 0, 2**32 - 1)


def check_out(out: str | Path | None) -> None:
    """Refuses, by an InputError, a folder's name that is too long, or empty, and so the folder one stands in."""
    if out is None:
        return
    if str(out) in ("", ".") or "\0" in str(out):
        raise InputError("out", str(out), "expected the name of a folder")
    try:
        Path(out).exists()
    except OSError as error:  # a name that is too long
        raise InputError("out", str(out), f"expected the name of a folder ({error.strerror})") from None


# ---- one flat record for files and commands ----


def fields_of(config: Any, is_aside: bool = False) -> Iterator[tuple[str, Any, bool]]:
    """All fields of nested records, flat: (name, value, whether it is aside)."""
    for field in dataclasses.fields(config):
        value, here = getattr(config, field.name), is_aside or "aside" in field.metadata
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, here)
        else:
            yield field.name, value, here


def settings(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `config.json` says of a config: the options that decide the results, and what else there is, in groups."""
    compute = getattr(config, "compute", None)
    how = {} if compute is None else {"compute": dataclasses.asdict(compute)}
    rest = {
        name: value for name, value, is_aside in fields_of(config) if is_aside and name not in how.get("compute", {})
    }
    paths = {name: rest.pop(name) for name in ("data_dir", "manual_dir") if name in rest}
    rest.pop("out", None)
    options = {name: value for name, value, is_aside in fields_of(config) if not is_aside}
    return options, {"paths": paths, "output": rest, **how}


def with_options(config: Any, options: Mapping[str, Any]) -> Any:
    """The config with options as JSON has them; those of `compute` stay as they are."""
    values, hints = {}, get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and field.name != "compute":
            values[field.name] = with_options(value, options)
        elif field.name in options:
            given = options[field.name]
            is_path = given and hints[field.name] == Path | None
            values[field.name] = tuple(given) if isinstance(given, list) else Path(given) if is_path else given
    return dataclasses.replace(config, **values)
