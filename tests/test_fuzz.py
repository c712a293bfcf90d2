"""A quarter of the malformed calls of fuzz.py, in a process of its own: each one succeeds or raises InputError."""

import os
import subprocess
import sys
from pathlib import Path


def test_malformed_arguments_are_refused_in_words() -> None:
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), "0.25"]
    quick = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(command, env=quick, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "'other'" not in done.stdout, done.stdout + done.stderr
    assert "'InputError'" in done.stdout and "'success'" in done.stdout and "files left: []" in done.stdout
