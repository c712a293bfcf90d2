"""The direction of the layers and the one address of each third-party choice, from the source.

Nothing is imported here: the modules are parsed, so that an import inside a function counts too.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "mil_jax"

# What each module of the package may import from the package. A module may know only modules that
# stand above it, so that data goes one way. A new module gets a line here.
MAY_KNOW: dict[str, tuple[str, ...]] = {
    "__init__": (),
    "errors": (),
    "datasets": ("errors",),  # a folder: its modules may also know each other
    "augment": ("errors",),
    "encoders": ("errors",),
    "losses": ("errors",),
    "metrics": ("errors",),
    "attention": ("errors",),
    "pooling": ("encoders", "errors"),
    "bags": ("datasets", "errors"),
    "model": ("encoders", "pooling", "errors"),
    "training": ("bags", "model", "losses", "metrics", "attention", "errors"),
    "ensemble": ("training", "model", "bags", "errors"),
    "protocols": ("bags", "metrics", "errors"),
    "evaluation": ("model", "bags", "metrics", "attention", "errors"),
    "committee": ("evaluation", "model", "bags", "metrics", "errors"),
    "run": ("errors",),  # a folder
    "runs": ("run", "errors"),
    "plots": ("errors",),
    "cli": ("errors",),
    "tensorboard_log": ("runs", "errors"),
    "report": ("attention", "plots", "runs", "errors"),  # a folder
    "recording": (
        "bags",
        "model",
        "training",
        "ensemble",
        "evaluation",
        "runs",
        "cli",
        "errors",
    ),
}

# Where each big third-party choice may be imported.
ADDRESSES: dict[str, tuple[str, ...]] = {
    "flax.linen": ("encoders", "pooling", "model"),
    "optax": ("training", "losses"),
    "tensorflow_datasets": ("datasets",),
    "tensorflow": (),
    "h5py": ("datasets",),
    "scipy": ("datasets",),
    "orbax": ("run",),
    "matplotlib": ("plots",),
    "tyro": ("cli",),
    "tensorboard": ("tensorboard_log",),
    "rich": ("cli",),
}

# Nothing in the package knows what is built on it.
ABOVE_THE_PACKAGE = ("experiments", "tests")


def module_of(path: Path) -> str:
    """The line of the tables that a file belongs to: its name, or its top folder's."""
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


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
    inside = (name.split(".") for name in names if is_within(name, PACKAGE))
    return {parts[1] if len(parts) > 1 else "__init__" for parts in inside}


SOURCES = sorted((ROOT / PACKAGE).rglob("*.py"))
each_source = pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])


def test_the_table_knows_every_module_and_no_other():
    found = {module_of(path) for path in SOURCES}
    assert found == set(MAY_KNOW), (
        f"not in MAY_KNOW: {sorted(found - set(MAY_KNOW))}; in MAY_KNOW, but gone: {sorted(set(MAY_KNOW) - found)}"
    )


def test_the_table_has_no_cycle():
    above: set[str] = set()
    for module, allowed in MAY_KNOW.items():
        assert set(allowed) <= above, f"{module} may know {set(allowed) - above}, which come later"
        above.add(module)


@each_source
def test_imports_point_one_way(path):
    module = module_of(path)
    assert module in MAY_KNOW, f"give {path.relative_to(ROOT)} a line in MAY_KNOW"
    unexpected = known_modules(imports_of(path)) - {*MAY_KNOW[module], module}
    assert not unexpected, (
        f"{path.relative_to(ROOT)} imports {', '.join(sorted(unexpected))}; "
        f"'{module}' may know {', '.join(MAY_KNOW[module]) or 'no other module'}"
    )


@each_source
def test_third_party_choices_have_one_address(path):
    module, names = module_of(path), imports_of(path)
    for choice, addresses in ADDRESSES.items():
        # `import flax` gives access to `flax.linen` as well.
        used = {name for name in names if is_within(name, choice) or is_within(choice, name)}
        assert not used or module in addresses, (
            f"{path.relative_to(ROOT)} imports {sorted(used)}; "
            f"{choice} belongs in {', '.join(addresses) or 'no module'}"
        )


@each_source
def test_nothing_in_the_package_knows_what_is_built_on_it(path):
    above = {name for name in imports_of(path) if name.split(".")[0] in ABOVE_THE_PACKAGE}
    assert not above, f"{path.relative_to(ROOT)} imports {sorted(above)}"


@each_source
def test_no_import_is_hidden_from_these_tests(path):
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    called = {ast.unparse(call.func).split(".")[-1] for call in calls}
    hidden = called & {"import_module", "__import__"}
    assert not hidden, f"{path.relative_to(ROOT)} imports by name at run time: {sorted(hidden)}"


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
    names = {"mil_jax.bags.Bags", "mil_jax.training", "mil_jaxed.model", "numpy", "mil_jax"}
    assert known_modules(names) == {"bags", "training", "__init__"}
