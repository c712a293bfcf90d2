"""Our poolings beside torchmil's, with the same parameters; skipped where torchmil is not installed."""

import importlib
import importlib.util
import warnings
from typing import Any

import pytest

pooling_parity: Any = importlib.import_module("pooling_parity")
absent = [name for name in ("torch", "torchmil") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(absent), reason=f"{' and '.join(absent)} not installed: the extra peers has them"),
    pytest.mark.usefixtures("quickly_compiled"),
]


@pytest.mark.parametrize("method", pooling_parity.PAIRS)
def test_a_method_computes_what_torchmil_does_and_padding_changes_nothing(method):
    with warnings.catch_warnings(action="ignore"):  # of the peer's own imports
        rows = pooling_parity.compare(pooling_parity.Config(seeds=1), method, pooling_parity.PAIRS[method])
    assert {row["what"] for row in rows} >= {"logit", "gradient"}
    for row in rows:
        assert row.get("difference", 0) < 1e-5 and row.get("ours", 0) < 1e-5, row


@pytest.mark.parametrize(
    ("method", "what"), [("CLAM-SB", "loss"), ("DSMIL", "logit"), ("TransMIL, 5 landmarks", "logit")]
)
def test_padding_changes_these_in_torchmil(method, what):
    with warnings.catch_warnings(action="ignore"):
        rows = pooling_parity.compare(pooling_parity.Config(seeds=1), method, pooling_parity.PAIRS[method])
    assert next(row["torchmil"] for row in rows if row["what"] == what and "torchmil" in row) > 1e-4
