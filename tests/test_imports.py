"""The direction of the layers and the one address of each third-party choice; and that the face is light.

Nothing is imported here but there: the modules are parsed, so that an import inside a function counts too.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "mil_jax"

# What each module of the package may import from the package, besides what all may know. A module may know only
# modules that stand above it, so that data goes one way. A new module gets a line here.
FOR_ALL = ("record", "errors", "text")
MAY_KNOW: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(FOR_ALL, ()),
    "datasets": (),  # a folder: its modules may also know each other
    "bags": (),
    "arrays": ("datasets", "bags"),
    "sampling": ("datasets", "bags"),
    "buckets": ("bags",),
    "augment": (),
    "encoders": (),
    "pooling": ("encoders",),
    "losses": (),
    "model": ("bags", "encoders", "pooling", "losses"),
    "members": ("bags", "model"),
    "optimizer": ("bags", "losses"),
    "ranks": (),
    "attention": ("ranks",),
    "collapse": (),
    "states": ("bags", "attention"),
    "training": ("bags", "buckets", "losses", "model", "optimizer", "attention", "states"),
    "placement": (),
    "epochs": ("bags", "model", "optimizer", "training", "placement"),
    "ensemble": ("bags", "buckets", "model", "members", "optimizer", "training", "placement", "epochs"),
    "metrics": ("ranks",),
    "intervals": ("metrics",),
    "curves": (),
    "evaluation": ("bags", "model", "attention", "collapse", "metrics", "intervals"),
    "committee": ("bags", "model", "metrics", "evaluation"),
    "protocols": ("bags", "sampling", "model", "metrics", "intervals"),
    "comparison": ("intervals", "evaluation"),
    "plots": (),  # a folder
    "run": (),  # what its folder says of itself; below, its modules
    "run.config": ("sampling", "model", "optimizer", "training"),
    "run.processes": ("placement", "run.config"),
    "run.checkpoints": ("run.processes",),
    "run.summary": ("bags", "sampling", "pooling", "model", "placement", "ensemble", "evaluation", "committee"),
    "run.figures": ("bags", "attention", "ensemble", "metrics", "curves", "evaluation", "plots", "run.summary"),
    "run.screen": ("bags", "sampling", "model", "training", "run.summary"),
    "run.saved": ("bags", "losses", "model", "members", "run.checkpoints", "run.summary"),
    "run.folder": ("run.processes", "run.checkpoints", "run.saved"),
    "run.tensorboard": ("run.saved",),
    "run.cli": ("run.config", "run.processes", "run.saved"),
    "run.fit": (
        "bags", "model", "members", "optimizer", "training", "ensemble", "evaluation", "run.config", "run.processes",
        "run.screen", "run.folder",
    ),
    "report": (  # a folder; its command makes event files, too
        "datasets", "attention", "plots", "run.screen", "run.saved", "run.folder", "run.tensorboard", "run.cli",
    ),
    "run.experiment": (
        "bags", "sampling", "losses", "model", "members", "optimizer", "training", "placement", "ensemble",
        "run.config", "run.processes", "run.summary", "run.figures", "run.screen", "run.saved", "run.folder",
        "run.tensorboard", "run.fit", "report",
    ),
    "run.study": (
        "sampling", "model", "optimizer", "training", "ensemble", "protocols", "run.config", "run.processes",
        "run.screen", "run.folder", "run.fit",
    ),
    "run.ablation": (
        "datasets", "bags", "sampling", "model", "members", "collapse", "training", "ensemble", "evaluation",
        "comparison", "run.config", "run.processes", "run.screen", "report", "run.study",
    ),
    "__init__": (
        "datasets", "bags", "arrays", "sampling", "losses", "model", "members", "optimizer", "training", "placement",
        "ensemble", "evaluation", "plots", "run.config", "run.saved", "run.experiment",
    ),
}  # fmt: skip

# Where each big third-party choice may be imported.
ADDRESSES: dict[str, tuple[str, ...]] = {
    "flax.linen": ("encoders", "pooling", "model"),
    "optax": ("optimizer", "losses", "training"),
    "tensorflow_datasets": ("datasets",),
    "tensorflow": (),
    "h5py": ("datasets",),
    "scipy": ("datasets",),
    "orbax": ("run.checkpoints",),
    "matplotlib": ("plots",),
    "tyro": ("run.cli",),
    "tensorboard": ("run.tensorboard",),
    "rich": ("run.screen",),
    "jinja2": ("report",),
}

# What `import mil_jax` does without.
LATER = ("matplotlib", "tensorflow_datasets", "orbax", "h5py", "scipy", "tyro")

# Nothing in the package knows what is built on it.
ABOVE_THE_PACKAGE = ("experiments", "tests")


def name_of(parts: tuple[str, ...]) -> str:
    """The line of the tables that a path or a dotted name inside the package belongs to."""
    inside_run = len(parts) > 1 and parts[0] == "run" and f"run.{parts[1]}" in MAY_KNOW
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
    assert set(map(module_of, SOURCES)) == set(MAY_KNOW)
    in_run = {path.stem for path in SOURCES if path.parent.name == "run" and path.parent.parent.name == PACKAGE}
    assert {f"run.{name}" for name in in_run - {"__init__"}} <= set(MAY_KNOW)


def test_the_table_has_no_cycle():
    above: set[str] = set()
    for module, allowed in MAY_KNOW.items():
        assert set(allowed) <= above, f"{module} may know {set(allowed) - above}, which come later"
        above.add(module)


@each_source
def test_a_module_keeps_to_the_tables(path):
    """It imports what it may, and nothing where these tests would not see it."""
    module, names, source = module_of(path), imports_of(path), path.read_text()
    allowed = () if module in ("record", "errors") else FOR_ALL
    unexpected = known_modules(names) - {*MAY_KNOW[module], *allowed, module}
    assert not unexpected, f"{path.relative_to(ROOT)} imports {', '.join(sorted(unexpected))}"
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


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import a.b as c, d", {"a.b", "d"}),
        ("from a.b import c as d, e", {"a.b.c", "a.b.e"}),
        ("def f():\n    import a\n    from b import c", {"a", "b.c"}),
        ("if TYPE_CHECKING:\n    from mil_jax.training import fit", {"mil_jax.training.fit"}),
        ("from . import idx", {"mil_jax.datasets.idx"}),
        ("from .idx import read", {"mil_jax.datasets.idx.read"}),
        ("from ..training import fit", {"mil_jax.training.fit"}),
        ("from .. import training", {"mil_jax.training"}),
        ("from mil_jax import bags, model", {"mil_jax.bags", "mil_jax.model"}),
    ],
)
def test_imported_names_are_found(source, names):
    assert imported_names(source, "mil_jax.datasets") == names


def test_known_modules_are_found():
    names = {"mil_jax.bags.Bags", "mil_jax.training", "mil_jax.run.saved.Run", "mil_jaxed.model", "numpy", "mil_jax"}
    assert known_modules(names) == {"bags", "training", "run.saved", "__init__"}
