"""The direction of the layers and the one address of each third-party choice; and that the face is light.

Nothing is imported here but there: the modules are parsed, so that an import inside a function counts too.
"""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "mil_jax"

# A module may import only modules that stand before it, so that data goes one way; a folder is one, but for `run`.
ORDER = (
    "record", "errors", "text", "memory", "datasets", "bags", "arrays", "sampling", "buckets", "augment", "convolution",
    "products", "encoders", "pooling", "losses", "model", "spread", "members", "optimizer", "ranks", "attention",
    "collapse", "states", "training", "placement", "epochs", "ensemble", "metrics", "intervals", "curves", "evaluation",
    "committee", "protocols", "checks", "windows", "streaming", "comparison", "folds", "split_files", "scores",
    "crossing", "known_answers", "significance", "rank_tables", "heatmaps", "plots", "run", "run.config",
    "run.processes", "run.checkpoints", "run.summary", "run.figures", "run.screen", "run.saved", "run.folder",
    "run.tensorboard", "run.cli", "run.fit", "report", "run.experiment", "run.search", "run.outcome", "run.maps",
    "run.cohort", "run.pairs", "run.study", "run.cross_validation", "run.ablation", "run.findings", "__init__",
)  # fmt: skip

# Where each big third-party choice may be imported.
ADDRESSES: dict[str, tuple[str, ...]] = {
    "flax.linen": ("encoders", "pooling", "model", "checks", "known_answers"),
    "optax": ("optimizer", "losses", "training"), "tensorflow_datasets": ("datasets",), "tensorflow": (),
    "h5py": ("datasets",), "scipy": ("datasets", "significance", "rank_tables"),
    "orbax": ("run.checkpoints",), "matplotlib": ("plots",), "tyro": ("run.cli",), "tensorboard": ("run.tensorboard",),
    "openpyxl": ("datasets",), "rich": ("run.screen",), "jinja2": ("report",), "sklearn": ("folds", "crossing"),
}  # fmt: skip

# What `import mil_jax` does without.
LATER = ("matplotlib", "tensorflow_datasets", "orbax", "h5py", "scipy", "tyro")

# Nothing in the package knows what is built on it.
ABOVE_THE_PACKAGE = ("experiments", "tests")


def name_of(parts: Sequence[str]) -> str:
    """The line of the tables that a path or a dotted name inside the package belongs to."""
    inside_run = len(parts) > 1 and parts[0] == "run" and f"run.{parts[1]}" in ORDER
    return f"run.{parts[1]}" if inside_run else parts[0]


def module_of(path: Path) -> str:
    return name_of(path.relative_to(ROOT / PACKAGE).with_suffix("").parts)


def imported_names(source: str, package: str) -> set[str]:
    """Full dotted names of all that a source text imports, wherever it does so.

    `from a import b` gives `a.b`; `package` is what a relative import starts from.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parents if node.level else []), *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def imports_of(path: Path) -> set[str]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return imported_names(path.read_text(), package)


def is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def known_modules(names: set[str]) -> set[str]:
    """The modules of the package among imported names; `import mil_jax` alone is `__init__`."""
    inside = (tuple(name.split(".")) for name in names if is_within(name, PACKAGE))
    return {name_of(parts[1:]) if len(parts) > 1 else "__init__" for parts in inside}


SOURCES = sorted((ROOT / PACKAGE).rglob("*.py"))
each_source = pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])


def test_the_table_knows_every_module_and_no_other():
    assert set(map(module_of, SOURCES)) == set(ORDER)
    in_run = {path.stem for path in SOURCES if path.parent.name == "run" and path.parent.parent.name == PACKAGE}
    assert {f"run.{name}" for name in in_run - {"__init__"}} <= set(ORDER)


@each_source
def test_a_module_keeps_to_the_tables(path):
    """It imports what it may, and nothing where these tests would not see it."""
    module, names, source = module_of(path), imports_of(path), path.read_text()
    later = known_modules(names) - set(ORDER[: ORDER.index(module) + 1])
    assert not later, f"{path.relative_to(ROOT)} imports {', '.join(sorted(later))}, which come later"
    for choice, addresses in ADDRESSES.items():
        # `import flax` gives access to `flax.linen` as well.
        used = {name for name in names if is_within(name, choice) or is_within(choice, name)}
        assert not used or module in addresses, f"{choice} belongs in {', '.join(addresses) or 'no module'}"
    assert not {name for name in names if name.split(".")[0] in ABOVE_THE_PACKAGE}
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    called = {ast.unparse(call.func).split(".")[-1] for call in calls}
    assert not called & {"import_module", "__import__"}, "it imports by name at run time"


def test_the_face_loads_nothing_that_a_first_look_does_without():
    code = f"import sys, mil_jax; print(*(name for name in {LATER} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(("source", "names"), [
    ("import a.b as c, d", {"a.b", "d"}), ("from a.b import c as d, e", {"a.b.c", "a.b.e"}),
    ("def f():\n    import a\n    from b import c", {"a", "b.c"}),
    ("if TYPE_CHECKING:\n    from mil_jax.training import fit", {"mil_jax.training.fit"}),
    ("from . import idx", {"mil_jax.datasets.idx"}), ("from .idx import read", {"mil_jax.datasets.idx.read"}),
    ("from ..training import fit", {"mil_jax.training.fit"}), ("from .. import training", {"mil_jax.training"}),
    ("from mil_jax import bags, model", {"mil_jax.bags", "mil_jax.model"}),
])  # fmt: skip
def test_imported_names_are_found(source, names):
    assert imported_names(source, "mil_jax.datasets") == names


def test_known_modules_are_found():
    names = {"mil_jax.bags.Bags", "mil_jax.training", "mil_jax.run.saved.Run", "mil_jaxed.model", "numpy", "mil_jax"}
    assert known_modules(names) == {"bags", "training", "run.saved", "__init__"}
