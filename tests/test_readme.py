"""The README's code runs and prints what the README says, and its links lead somewhere."""

import doctest
import re
from pathlib import Path

import pytest
from conftest import commands_here

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "experiments/README.md", "experiments/RESULTS.md")


def test_python_blocks_print_what_they_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    names: dict[str, object] = {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)):
        # Training follows rounding, which differs between versions of JAX and processors, so its last digit is free.
        code = block.replace("'0.99'", "'0.9...'")
        test = doctest.DocTestParser().get_doctest(code, names, "README", str(README), 0)
        with commands_here(tmp_path / "cache", quick=number > 0):  # the first one trains longer than it compiles
            runner.run(test, clear_globs=False)
        names = test.globs
    assert runner.tries > 15
    assert runner.failures == 0
    assert (tmp_path / "bags.png").stat().st_size > 10_000
    files = {file.name for file in (tmp_path / "runs" / "mine").rglob("*")}
    assert {"summary.json", "metrics.jsonl", "report.html", "roc_curve.png", "checkpoint"} <= files


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 200


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    here = ROOT / document
    text = here.read_text()
    links = [link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    targets = [(here.parent / name if name else here, heading) for name, _, heading in links]
    scripts = [(ROOT / name, "") for name in re.findall(r"\b(experiments/[a-z_/]+\.py)", text)]
    assert not [path for path, _ in targets + scripts if not path.exists()]
    assert not [heading for path, heading in targets if heading and heading not in anchors(path)]


def anchors(path: Path) -> set[str]:
    """What a link to a heading of the document may end in, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
