"""What the processes of a run say to one another besides their arrays: one decides, and all follow."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_first() -> bool:
    """Whether this is the process that writes, prints and decides; alone, it is."""
    return jax.process_index() == 0


def from_first(number: int) -> int:
    """The number that the first process gives, in all of them; all must call it."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))
