"""Where members run: defaults, refusals, and that all of them come back."""

import warnings

import jax
import numpy as np
import pytest
from conftest import assert_same_bits, message_of

from mil_jax import placement
from mil_jax.memory import aligned_empty
from mil_jax.placement import Placement


def test_default_placement() -> None:
    count = jax.device_count()
    assert placement.default_placement(99).devices == count
    assert placement.default_placement(1).devices == min(2, count), "a program as for several members"
    assert placement.default_placement(99).together == (1 if jax.default_backend() == "cpu" else -(-99 // count))


def test_one_device_of_several_cores_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members that could run side by side do not; a lone one could not, nor could any on one core."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(placement, "core_count", lambda: 4)
    with pytest.warns(UserWarning, match=r"3 members share one of 4 cores: call mil_jax.use_all_cores\(\)"):
        assert placement.default_placement(3) == Placement(1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        placement.default_placement(1)
        monkeypatch.setattr(placement, "core_count", lambda: 1)
        placement.default_placement(3)


def test_devices_of_a_running_jax_stay_as_they_are() -> None:
    assert placement.use_all_cores() == placement.use_all_cores(3) == jax.device_count()
    assert "devices = -1: expected a whole number from 1" in message_of(placement.use_all_cores, -1)


def test_cores_are_counted_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system does not say which of them a process may use, too."""
    os = placement.os
    assert 1 <= placement.core_count() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert placement.core_count() == os.cpu_count()


def test_placements_that_cannot_be_are_refused() -> None:
    count = jax.device_count()
    assert f"devices = {count + 1}: expected 1 to {count}" in message_of(Placement, count + 1, 1)
    for devices, together in ((0, 1), (1, 0)):
        assert "expected a whole number from 1" in message_of(Placement, devices, together)


@pytest.mark.parametrize("together", [1, 2, 5])
def test_members_come_back_in_their_order(together: int) -> None:
    """Five on all devices, which do not divide them: fillers repeat the last one."""
    where = Placement(jax.device_count(), together)
    own, shared = {"x": np.arange(10.0).reshape(5, 2)}, np.float64(3)
    filled = placement.fill(own, where)["x"]
    assert len(filled) % where.devices == 0 and (filled[5:] == own["x"][-1]).all()
    triple = placement.on_members(
        lambda s, o: placement.map_members(lambda x: jax.tree.map(lambda v: s * v, x), o, together), where
    )
    result = placement.to_host(jax.jit(triple)(placement.put_shared(shared, where), placement.put_members(own, where)))
    assert_same_bits(result, {"x": (3 * filled).astype(np.float32)})


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices have memory of their own")
def test_what_members_share_is_in_memory_once() -> None:
    """All devices read the array itself, or one copy of an array that they cannot read."""
    where = Placement(jax.device_count(), 1)
    lies_right = aligned_empty((1000, 3), np.float16)
    lies_right[:] = np.arange(3)
    for values in (lies_right, lies_right[1:], np.asfortranarray(lies_right)):
        placed = placement.put_shared(values, where)
        addresses = {shard.data.unsafe_buffer_pointer() for shard in placed.addressable_shards}
        assert len(addresses) == 1 and (addresses == {values.ctypes.data}) == (values is lies_right)
        np.testing.assert_array_equal(placement.to_host(placed), values)
