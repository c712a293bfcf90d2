"""Windows: the bits of memory where one is enough, and where not, an epoch by hand; resuming after any of them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_close, assert_same_bits, hyper_of, make_pool, member, message_of

from mil_jax.arrays import bags_from_set
from mil_jax.bags import take
from mil_jax.datasets.cohort import BagSource, Cohort, cohort_of_arrays
from mil_jax.ensemble import Ensemble, Execution, Progress, fit_ensemble, member_keys, predict
from mil_jax.model import MIL
from mil_jax.optimizer import HyperConfig, make_hyper
from mil_jax.placement import Placement
from mil_jax.protocols import Folds, split_bags
from mil_jax.streaming import (
    WindowExecution,
    WindowProgress,
    fit_windows,
    predict_windows,
    window_hyper,
)
from mil_jax.training import EpochInfo, FitConfig, FitState, TrainState, epoch_order, init_fit, train_step, validate
from mil_jax.windows import Windows, bags_of, lay_out

CONFIG = FitConfig(epochs=3, batch_size=2, patience=2)
PLACES = [Placement(1, 1), Placement(2, 1), Placement(2, 2)]


pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    """20 bags of 1 to 5 instances of half precision, 60 in all."""
    x, classes = make_pool(7)
    parts = np.split(np.arange(60), np.cumsum([1 + i % 5 for i in range(20)])[:-1])
    truth = (classes == 1).astype(np.int32)
    sources = [
        BagSource(
            name=f"slide {i}", group=f"patient {i}", label=int(truth[at].max()), arrays=(x[at].astype("f2"), None)
        )
        for i, at in enumerate(parts)
    ]
    return cohort_of_arrays("made up", sources, ("none", "some"), instance_label=truth)


@pytest.fixture(scope="module")
def folds() -> Folds:
    """Three members with 11, 11 and 10 bags to train on, and 5, 4 and 5 to be chosen on."""
    part = lambda start, count: [*np.sort((np.arange(count) * 7 + start) % 20), -1][: 11 if count > 5 else 5]  # noqa: E731
    return Folds(
        np.array([part(0, 11), part(7, 11), part(3, 10)]),
        np.array([part(17, 5), part(4, 4), part(13, 5)]),
        np.array([part(12, 4), part(12, 4), part(8, 5)]),
    )


def fitted(model: MIL, cohort: Cohort, folds: Folds, size: int, execution: Execution, **hyper: Any) -> Ensemble:
    keys = member_keys(jax.random.key(0), len(folds.train))
    return fit_windows(model, keys, Windows(cohort, size), folds, CONFIG, execution=execution, **hyper)


@pytest.mark.parametrize("placement", PLACES[1:])
@pytest.mark.parametrize("absent", [True, False])
def test_one_window_gives_the_bits_of_memory(
    placement: Placement, absent: bool, sum_model: MIL, cohort: Cohort, folds: Folds
) -> None:
    """Parameters, curves, standardisation; with places without a bag, and without any."""
    folds = folds if absent else Folds(folds.train[:2], folds.val[:2, :4], folds.test[:2])
    bags, keys = bags_from_set(cohort.read()), member_keys(jax.random.key(0), len(folds.train))
    splits, config = split_bags(bags, folds), HyperConfig(standardize=True)
    hyper, ours = make_hyper(splits.train, config), window_hyper(Windows(cohort, 60), folds, config)
    assert_same_bits(hyper, ours)
    expected = fit_ensemble(sum_model, keys, splits.train, splits.val, CONFIG, hyper, Execution(placement))
    assert_same_bits(fitted(sum_model, cohort, folds, 60, Execution(placement), hyper=ours), expected)


@pytest.mark.parametrize("size", [5, 17, 40])
def test_windows_hold_every_bag_once_in_a_new_order(size: int, cohort: Cohort, folds: Folds) -> None:
    layout = lay_out(Windows(cohort, size), bags_of(folds.train), bags_of(folds.val))
    plans = [layout.plan(epoch) for epoch in range(4)]
    for train, val in plans:
        for part, whole in ((train, bags_of(folds.train)), (val, bags_of(folds.val))):
            assert sorted(np.concatenate(part).tolist()) == whole.tolist()
            assert all(cohort.sizes[bags].sum() <= size and len(bags) <= layout.places for bags in part)
        assert_same_bits(val, plans[0][1])
    assert len({str(train) for train, _ in plans}) == 4
    assert str(layout.plan(2)) == str(plans[2])
    other = dataclasses.replace(layout, windows=Windows(cohort, size, jax.random.key(1)))
    assert str(other.plan(0)) != str(plans[0])


def test_an_epoch_of_windows_is_its_steps_one_by_one(sum_model: MIL, cohort: Cohort, folds: Folds) -> None:
    """A member visits its bags of each window in an order that its key and the window decide."""
    bags, hyper = bags_from_set(cohort.read()), hyper_of(0.02, 0.01, (0.8, 1.5))
    keys, windows, curves = member_keys(jax.random.key(0), 3), Windows(cohort, 17), []
    states: list[TrainState] = []

    def note(_: int, info: EpochInfo, state: FitState) -> None:
        curves.append(info)
        states.append(jax.tree.map(np.array, state.train))

    keep = WindowExecution(Placement(1, 1), on_epoch=note)
    fit_windows(sum_model, keys, windows, folds, FitConfig(epochs=1, batch_size=2), hyper, keep)
    layout = lay_out(windows, bags_of(folds.train), bags_of(folds.val))
    placed = jax.tree.map(jnp.asarray, bags)
    step = jax.jit(lambda *given: train_step(sum_model, hyper, placed, *given))
    for i in range(3):
        own, state, losses = member(keys, i), init_fit(sum_model, member(keys, i), 5, (6,)).train, []
        for number, index in enumerate(layout.plan(0)[0]):
            at = [bag for bag in folds.train[i] if bag in index]
            key = jax.random.fold_in(jax.random.fold_in(own.order, 0), number)
            places = min(layout.places, folds.train.shape[1])
            order, valid = epoch_order(key, places, 2, jnp.arange(places) < len(at))
            for batch, counts in zip(np.asarray(order), np.asarray(valid), strict=True):
                if counts.any():
                    chosen = np.array([at[k] if v else 0 for k, v in zip(batch, counts, strict=True)])
                    state, info = step(state, chosen, counts)
                    losses += [float(info.loss)] * int(counts.sum())
        assert int(state.step) > 5 and len(losses) == (folds.train[i] >= 0).sum()
        assert_close(member(states[0], i), state)
        assert float(curves[0].train_loss[i]) == pytest.approx(np.mean(losses), rel=1e-5)
        judged = validate(
            sum_model, state.params, hyper, jax.tree.map(jnp.asarray, take(bags, folds.val[i][folds.val[i] >= 0]))
        )
        assert_close(
            (curves[0].val_loss[i], curves[0].val_accuracy[i], member(curves[0].positive, i)), (*judged[:2], judged[2])
        )


@pytest.mark.parametrize("placement", PLACES[1:])
def test_a_run_goes_on_after_any_window_or_epoch_to_the_same_bits(
    placement: Placement, sum_model: MIL, cohort: Cohort, folds: Folds
) -> None:
    points: list[Progress] = []
    infos: list[Any] = []

    def on_epoch(_: int, info: Any, state: Any) -> None:
        infos.append(info)
        points.append(Progress(jax.tree.map(np.array, state), tuple(infos)))

    def on_window(progress: WindowProgress) -> None:
        state, sums = jax.tree.map(np.array, (progress.state, progress.sums))
        points.append(dataclasses.replace(progress, state=state, sums=sums))

    run = WindowExecution(placement, on_epoch=on_epoch, on_window=on_window)
    whole = fitted(sum_model, cohort, folds, 17, run)
    assert len(points) > 15 and whole.epochs_run.max() == 3
    for point in points[:: 4 if placement.together == 1 else 7]:
        rest = fitted(sum_model, cohort, folds, 17, Execution(placement, progress=point))
        assert_same_bits(rest, whole)


@pytest.mark.parametrize("size", [5, 23, 60])
def test_standardisation_and_prediction_are_those_of_memory(
    size: int, sum_model: MIL, cohort: Cohort, folds: Folds
) -> None:
    bags, windows = bags_from_set(cohort.read()), Windows(cohort, size)
    config = HyperConfig(standardize=True)
    hyper = make_hyper(split_bags(bags, folds).train, config)
    assert_close(window_hyper(windows, folds, config), hyper)
    members = fitted(sum_model, cohort, folds, size, Execution(Placement(2, 1)), hyper=hyper).members
    for index in (np.arange(20), np.array([3, 4, 11])):
        predicted, expected = (
            predict_windows(sum_model, members, windows, index),
            predict(sum_model, members, take(bags, index)),
        )
        assert [values.shape for values in predicted.attention] == [(3, cohort.sizes[i]) for i in index]
        padded = predicted.padded(np.arange(len(index)))
        most = cohort.sizes[index].max()
        assert_close(padded, dataclasses.replace(expected, attention=np.asarray(expected.attention)[..., :most],
                                                 scores=np.asarray(expected.scores)[..., :most]))  # fmt: skip


def test_files_are_read_once_per_epoch_and_set(sum_model: MIL, cohort: Cohort, folds: Folds) -> None:
    """A bag once for training and once for validation; all once where one window holds them."""
    reads: list[str] = []

    class Counted(BagSource):
        def read(self) -> Any:
            reads.append(self.name)
            return super().read()

    bags = tuple(Counted(**{f.name: getattr(bag, f.name) for f in dataclasses.fields(bag)}) for bag in cohort.bags)
    counted, used = dataclasses.replace(cohort, bags=bags), [bags_of(part) for part in folds[:2]]
    hyper, config = hyper_of(), FitConfig(epochs=2)
    for size, count in ((60, len(np.union1d(*used))), (17, 2 * sum(map(len, used)))):
        reads.clear()
        fit_windows(sum_model, member_keys(jax.random.key(0), 3), Windows(counted, size), folds, config, hyper)
        assert len(reads) == count


def test_what_cannot_be_trained_is_refused(sum_model: MIL, concat_model: MIL, cohort: Cohort, folds: Folds) -> None:
    keys, windows = member_keys(jax.random.key(0), 3), Windows(cohort, 30)
    assert "window = 0: expected a whole number from 1" in message_of(Windows, cohort, 0)
    refused = lambda *given: message_of(fit_windows, sum_model, keys, *given)  # noqa: E731
    assert "window = 4: expected at least 5, the instances of bag 'slide 4'" in refused(Windows(cohort, 4), folds)
    assert "expected a row for each of 3 members" in refused(windows, Folds(*(part[:2] for part in folds)))
    wrong = folds._replace(val=np.where(folds.val == 4, 20, folds.val))
    assert "folds.val = '-1 to 20': expected bags 0 to 19" in refused(windows, wrong)
    assert "or the head 'sum'" in message_of(fit_windows, concat_model, keys, windows, folds)
    broken = [*cohort.bags]
    broken[5] = dataclasses.replace(broken[5], arrays=(np.full((1, 6), np.nan, np.float16), None))
    wrong_cohort = dataclasses.replace(cohort, bags=tuple(broken))
    assert "slide 5 = 'NaN or infinite'" in refused(Windows(wrong_cohort, 30), folds, CONFIG, hyper_of())
    assert lay_out(windows, np.arange(20), np.arange(20)).instances == 30
