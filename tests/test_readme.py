"""The README's code runs and prints what the README says."""

import doctest
import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_print_what_they_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    # Training follows rounding, which differs between versions of JAX and processors, so its last digit is free.
    code = "\n".join(blocks).replace("'0.99'", "'0.9...'")
    test = doctest.DocTestParser().get_doctest(code, {}, "README", str(README), 0)
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    assert result.attempted > 15
    assert result.failed == 0
    assert (tmp_path / "bags.png").stat().st_size > 10_000


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    scripts = re.findall(r"`(experiments/[\w/]+\.py)`", README.read_text())
    missing = [path for path in links + scripts if not path.startswith("http") and not (README.parent / path).exists()]
    assert not missing
