"""Training one member: by hand in NumPy, on rigged curves, and by two routes that must agree."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import HostRun, assert_close, assert_same_bits, hyper_of, in_double, member, numpy_forward
from conftest import quick_jit as jit
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from mil_jax import buckets, training
from mil_jax.bags import Bags, gather, mark_absent, pad
from mil_jax.model import MIL, ModelConfig, build
from mil_jax.optimizer import Hyper
from mil_jax.training import FitConfig, FitState, TrainState, epoch_order, train_epoch, train_step

# ---- the loss and Adam once more, in NumPy: in double precision, or complex ----


def numpy_output(params: Any, bags: Bags, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits [C] and attention [K] of the bag at `i`."""
    return numpy_forward(params, np.asarray(bags.pool)[np.asarray(bags.rows)[i]], np.asarray(bags.mask)[i])


def numpy_loss(params: Any, bags: Bags, index: Any, class_weight: Any, l2: float) -> Any:
    """Mean over the bags at `index` of weight * cross-entropy, plus L2 on V, U and w."""
    total = 0
    for i in index:
        logits, label = numpy_output(params, bags, i)[0], int(bags.label[i])
        probability = np.exp(logits) / np.exp(logits).sum()
        total -= class_weight[label] * np.log(probability[label])
    squares = sum((params["pooling"][name]["kernel"] ** 2).sum() for name in "VUw")
    return total / len(index) + l2 * squares


def numpy_gradient(loss: Callable[[Any], Any], params: Any) -> list[np.ndarray]:
    """The exact derivative by complex steps: Im f(x + ih) / h has no differences that cancel."""
    leaves, structure = jax.tree.flatten(params)
    gradient = [np.zeros(leaf.shape) for leaf in leaves]
    for nth, leaf in enumerate(leaves):
        for place in np.ndindex(leaf.shape):
            stepped = leaf.astype(complex)
            stepped[place] += 1e-30j
            moved = [*leaves[:nth], stepped, *leaves[nth + 1 :]]
            gradient[nth][place] = loss(jax.tree.unflatten(structure, moved)).imag / 1e-30
    return gradient


def numpy_adam(losses: list[Callable[[Any], Any]], params: Any, rate: float) -> Any:
    """The parameters after a step on each of the losses, with epsilon where Keras has it.

    Kingma and Ba 2015, the efficient order at the end of section 2: epsilon is added to the root of
    the second moment before its bias is corrected.
    """
    leaves, structure = jax.tree.flatten(params)
    first = second = [np.zeros(leaf.shape) for leaf in leaves]
    for t, loss in enumerate(losses, start=1):
        gradient = numpy_gradient(loss, jax.tree.unflatten(structure, leaves))
        first = [0.9 * m + 0.1 * g for m, g in zip(first, gradient, strict=True)]
        second = [0.999 * v + 0.001 * g**2 for v, g in zip(second, gradient, strict=True)]
        length = rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        leaves = [leaf - length * m / (np.sqrt(v) + 1e-7) for leaf, m, v in zip(leaves, first, second, strict=True)]
    return jax.tree.unflatten(structure, leaves)


# ---- shared, compiled once ----


@pytest.fixture(scope="module")
def state(concat_model: MIL, host_run: HostRun) -> FitState:
    """The second member of `host_run`, before its first epoch."""
    return jit(lambda keys: training.init_fit(concat_model, keys, 3, (6,)))(member(host_run.keys, 1))


@pytest.fixture(scope="module")
def sum_state(sum_model: MIL) -> FitState:
    return jit(lambda key: training.init_fit(sum_model, training.member_key(key), 5, (6,)))(jax.random.key(6))


@pytest.fixture(scope="module")
def step(concat_model: MIL) -> Callable[..., Any]:
    return jit(partial(train_step, concat_model))


@pytest.fixture(scope="module")
def sum_step(sum_model: MIL) -> Callable[..., Any]:
    return jit(partial(train_step, sum_model))


def adam(state: TrainState) -> Any:
    """Adam's part of the optimizer's state."""
    return state.opt_state[1]


# ---- the loss ----


@pytest.mark.parametrize("kind", ["concat", "sum"])
def test_loss_is_that_of_a_calculation_by_hand(kind, request):
    names = ("train_bags", "state", "step") if kind == "concat" else ("ragged_bags", "sum_state", "sum_step")
    bags, start, run = (request.getfixturevalue(name) for name in names)
    held = [2, 3, 5, 9]
    label = bags.label[held]
    assert set(label) == {0, 1}, "both class weights must count"
    index, valid = jnp.array([*held, 0]), jnp.arange(5) < 4
    _, (loss, right) = run(hyper_of(1e-3, 0.07, (0.6, 3.0)), bags, start.train, index, valid)
    params = in_double(start.train.params)
    assert float(loss) == pytest.approx(numpy_loss(params, bags, held, (0.6, 3.0), 0.07), rel=1e-6)
    predicted = [numpy_output(params, bags, i)[0].argmax() for i in held]
    assert int(right) == (np.array(predicted) == label).sum()


def test_l2_touches_only_v_u_and_w(state, train_bags, step):
    """Without a cross-entropy the gradient of V, U and w is 2 * l2 times them, and 0 elsewhere."""
    taken, _ = step(hyper_of(0.0, 0.3, (0, 0)), train_bags, state.train, jnp.arange(5), jnp.ones(5, bool))
    gradient = jax.tree.map(lambda moment: moment / (1 - 0.9), adam(taken).mu)
    expected = jax.tree.map(jnp.zeros_like, state.train.params)
    expected["pooling"] = jax.tree.map(lambda leaf: 0.6 * leaf, state.train.params["pooling"])
    assert_close(gradient, expected)


def test_without_l2_is_with_an_l2_of_zero(state, train_bags, step):
    given = train_bags, state.train, jnp.arange(5), jnp.ones(5, bool)
    none, zero = (step(hyper_of(l2=l2), *given) for l2 in (None, 0.0))
    assert_close(none, zero)


def test_gradients_of_the_loss(sum_model, sum_state, ragged_bags):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), sum_state.train.params)
        view = jax.tree.map(lambda leaf: leaf[:5], ragged_bags.view)
        batch = training.Batch(
            gather(ragged_bags.pool, view.rows), view.mask, jnp.asarray(view.label), jnp.arange(5) < 4
        )
        loss = jax.jit(lambda p: training.batch_loss(p, sum_model, hyper_of(0.0, 0.07, (0.6, 3.0)), batch)[0])
        check_grads(loss, (params,), order=1, modes=["rev"])


# ---- one step ----


@pytest.mark.parametrize(("scale", "decay"), [(1.0, None), (1e-6, None), (1.0, 0.3)])
def test_train_step_is_that_of_a_numpy_adam(scale, decay, state, train_bags, step):
    """Three steps, the last on a partial batch; at the small scale epsilon decides their length."""
    weight, l2 = np.array([0.6, 3.0]) * scale, 0.05 * scale
    hyper = hyper_of(0.02, l2, weight.tolist(), weight_decay=None if decay is None else jnp.float32(decay))
    batches = [[4, 0, 11, 7, 2], [1, 3, 5, 22, 8], [9, 10, 6]]
    taken = state.train
    for batch in batches:
        taken, _ = step(hyper, train_bags, taken, jnp.array([*batch, 0, 0][:5]), jnp.arange(5) < len(batch))

    def loss(params: Any, batch: list[int]) -> Any:
        decayed = (decay or 0) / 2 * sum((leaf**2).sum() for leaf in jax.tree.leaves(params))
        return numpy_loss(params, train_bags, batch, weight, l2) + decayed

    losses = [partial(loss, batch=batch) for batch in batches]
    assert int(taken.step) == 3
    assert_close(taken.params, numpy_adam(losses, in_double(state.train.params), 0.02))


def test_dropout_is_decided_by_the_key_and_the_step(sum_state, ragged_bags, quick_hyper, sum_step):
    config = ModelConfig(hidden=(8, 4), attention_units=5, head="sum", dropout=0.3)
    noisy_step = jit(partial(train_step, build(config)))
    given = quick_hyper, ragged_bags, sum_state.train, jnp.arange(5), jnp.ones(5, bool)
    later = (*given[:2], dataclasses.replace(sum_state.train, step=jnp.int32(1)), *given[3:])
    key, other = jax.random.split(jax.random.key(0))
    assert_same_bits(noisy_step(*given, key), noisy_step(*given, key))
    noisy = [noisy_step(*given, key), noisy_step(*given, other), noisy_step(*later, key)]
    losses = [float(info.loss) for _, info in [*noisy, sum_step(*given)]]
    assert len(set(losses)) == 4, "another key, another step, and none"
    assert_close(noisy_step(*given), sum_step(*given))


def test_augmentation_reaches_the_step_and_nothing_else(sum_model, sum_state, ragged_bags, quick_hyper, sum_step):
    """An augmentation that blots everything out is as if there were nothing in the pool."""
    blotted = sum_model.clone(augment=lambda key, instances: jnp.zeros_like(instances))
    at, blank = (jnp.arange(5), jnp.ones(5, bool)), Bags(np.zeros_like(ragged_bags.pool), ragged_bags.view)
    step = jit(partial(train_step, blotted))
    assert_close(
        step(quick_hyper, ragged_bags, sum_state.train, *at, jax.random.key(0)),
        sum_step(quick_hyper, blank, sum_state.train, *at),
    )
    given = sum_state.train.params, None, ragged_bags
    assert_close(training.predict_member(blotted, *given), training.predict_member(sum_model, *given))


def test_slots_that_only_fill_a_batch_have_no_influence(state, train_bags, quick_hyper, step):
    valid = jnp.array([True, True, True, False, False])
    one = step(quick_hyper, train_bags, state.train, jnp.array([0, 1, 2, 3, 4]), valid)
    other = step(quick_hyper, train_bags, state.train, jnp.array([0, 1, 2, 9, 2]), valid)
    assert_same_bits(one, other)


# ---- one epoch ----


@pytest.mark.parametrize(("bag_count", "batch_size"), [(3, 4), (8, 4)])
def test_an_order_visits_every_bag_exactly_once(bag_count, batch_size):
    steps = -(-bag_count // batch_size)
    draw = jit(jax.vmap(lambda key: epoch_order(key, bag_count, batch_size)))
    orders = map(np.asarray, draw(jax.random.split(jax.random.key(1), 20)))
    for index, valid in zip(*orders, strict=True):
        assert index.shape == valid.shape == (steps, batch_size)
        assert sorted(index[valid]) == list(range(bag_count))
        assert index.min() >= 0 and index.max() < bag_count, "fillers must be bags too"
        assert valid.any(axis=1).all(), "no step without a bag"


def test_every_epoch_has_a_new_order(host_run, state, train_bags, quick_hyper, step):
    """The orders of six epochs differ, and taking their steps one by one is what a run does."""
    keys = [jax.random.fold_in(host_run.keys.order[1], epoch) for epoch in range(6)]
    orders = [tuple(map(np.asarray, epoch_order(key, 23, 5))) for key in keys]
    visited = {tuple(index[valid].tolist()) for index, valid in orders}
    assert len(visited) == 6 and all(sorted(order) == [*range(23)] for order in visited)
    one_by_one = state.train
    for epoch in range(2):
        for batch in zip(*orders[epoch], strict=True):
            one_by_one, _ = step(quick_hyper, train_bags, one_by_one, *batch)
        assert_close(one_by_one.params, member(host_run.states[epoch].train.params, 1))


@pytest.mark.parametrize("batch_size", [5, 40])
def test_a_partial_last_batch_is_exact(batch_size, concat_model, state, train_bags):
    """23 bags in batches of 5, the last of 3, and all in one batch of 40."""
    run = jit(partial(training.train_epoch, concat_model, FitConfig(batch_size=batch_size)))
    hyper = hyper_of(0.0, 0.05, (0.6, 3.0))
    still, (loss, accuracy) = run(hyper, train_bags, state.train, jax.random.key(3))
    assert_same_bits(still.params, state.train.params)
    params, every = in_double(state.train.params), range(23)
    given = partial(numpy_loss, bags=train_bags, class_weight=(0.6, 3.0), l2=0.05)
    assert float(loss) == pytest.approx(given(params, index=every), rel=1e-6)
    predicted = [numpy_output(params, train_bags, i)[0].argmax() for i in every]
    assert float(accuracy) == pytest.approx(np.mean(np.array(predicted) == np.asarray(train_bags.label)))

    moving = dataclasses.replace(hyper, learning_rate=jnp.float32(0.02))
    moved, _ = run(moving, train_bags, state.train, jax.random.key(3))
    index, valid = map(np.asarray, epoch_order(jax.random.key(3), 23, batch_size))
    losses = [partial(given, index=batch[held]) for batch, held in zip(index, valid, strict=True)]
    assert int(moved.step) == len(losses) == -(-23 // batch_size)
    assert_close(moved.params, numpy_adam(losses, params, 0.02))


def absent_at(bags: Bags, places: list[int]) -> Bags:
    """The same bags with no bag at some places, but instances that would do harm if they were looked at."""
    label = np.where(np.isin(np.arange(len(bags.label)), places), -1, bags.label).astype(np.int32)
    return mark_absent(Bags(bags.pool, dataclasses.replace(bags.view, label=label)))


def test_an_order_leaves_places_without_a_bag_out() -> None:
    """The others come in the order that they have anyway."""
    present = jnp.arange(7) % 3 > 0
    whole, _ = epoch_order(jax.random.key(1), 7, 1)
    for batch_size in (1, 3, 10):
        index, valid = epoch_order(jax.random.key(1), 7, batch_size, present)
        assert index.shape == valid.shape == (-(-7 // batch_size), batch_size)
        assert index[valid].tolist() == [i for i in whole[:, 0].tolist() if i % 3]
        assert (np.diff(valid.ravel().astype(int)) <= 0).all(), "bags first"


@pytest.mark.parametrize("places", [[], [4], [1, 2, 3, 19, 20, 21]])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_an_epoch_without_some_bags_is_its_steps_on_the_others(
    places: list[int], dropout: float, state: FitState, train_bags: Bags, quick_hyper: Hyper
) -> None:
    """Of all 23 bags, or of 22 or 17 in the same 23 places: 5 steps, or 4, by one program or one by one."""
    model = build(ModelConfig(hidden=(8, 4), attention_units=5, dropout=dropout))
    bags, key = absent_at(train_bags, places), jax.random.key(3)
    assert bags.view.partial == bool(places)
    done, (loss, accuracy) = jit(partial(train_epoch, model, FitConfig(batch_size=5)))(
        quick_hyper, bags, state.train, key
    )
    key_order, key_noise = jax.random.split(key) if dropout else (key, None)
    order = [i for i in epoch_order(key_order, 23, 1)[0][:, 0].tolist() if i not in places]
    taken, infos, step = state.train, [], jit(partial(train_step, model))
    for batch in [order[i : i + 5] for i in range(0, len(order), 5)]:
        index, valid = jnp.array([*batch, *[0] * 5][:5]), jnp.arange(5) < len(batch)
        taken, info = step(quick_hyper, train_bags, taken, index, valid, key_noise)
        infos.append((len(batch) * float(info.loss), int(info.right)))
    assert int(done.step) == len(infos) == -(-len(order) // 5)
    assert_close(done, taken)
    assert_close((loss, accuracy), tuple(np.sum(infos, axis=0) / len(order)))


def test_places_without_a_bag_change_nothing_for_members_side_by_side(
    concat_model: MIL, state: FitState, train_bags: Bags, quick_hyper: Hyper
) -> None:
    """Two members of 23 and 17 bags are, vmapped, what each is alone."""
    epoch = partial(train_epoch, concat_model, FitConfig(batch_size=5), quick_hyper)
    label = np.stack([absent_at(train_bags, places).label for places in ([], [0, 5, 6, 7, 8, 22])])

    def of_member(label: jax.Array) -> Any:
        bags = jax.tree.map(jnp.asarray, train_bags)
        view = dataclasses.replace(bags.view, label=label, partial=True)
        return epoch(Bags(bags.pool, view), state.train, jax.random.key(3))

    together = jit(jax.vmap(of_member))(label)
    for i in range(2):
        assert_close(member(together, i), jit(of_member)(label[i]))
    assert_close(member(together, 0), jit(epoch)(train_bags, state.train, jax.random.key(3)))


@pytest.mark.parametrize("chunk", [512, 5])
def test_validation_by_hand_in_chunks_of_any_size(chunk, concat_model, state, val_bags, monkeypatch):
    """The loss knows no class weights but has L2; 5 does not divide the 17 bags."""
    monkeypatch.setattr(buckets, "EVALUATION_BAGS", chunk)
    given = state.train.params, hyper_of(1e-3, 0.05, (100.0, 3.0)), val_bags
    loss, accuracy, positive, negative = jit(partial(training.validate, concat_model))(*given)
    predicted = jit(partial(training.predict_member, concat_model))(given[0], None, val_bags)
    params, label = in_double(state.train.params), np.asarray(val_bags.label)
    expected = numpy_loss(params, val_bags, range(17), (1.0, 1.0), 0.05)
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    logits, attention = map(np.array, zip(*(numpy_output(params, val_bags, i) for i in range(17)), strict=True))
    assert float(accuracy) == pytest.approx(np.mean(logits.argmax(axis=1) == label))
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert_close((predicted.probability, predicted.attention), (probability, attention))
    entropy = -(attention * np.log(attention)).sum(axis=1)
    mass = (attention * (np.asarray(val_bags.instance_label) == 1)).sum(axis=1)
    assert float(positive.entropy) == pytest.approx(entropy[label == 1].mean(), rel=1e-5)
    assert float(positive.positive_mass) == pytest.approx(mass[label == 1].mean(), rel=1e-5)
    assert float(negative.entropy) == pytest.approx(entropy[label == 0].mean(), rel=1e-5)


def test_the_gradient_norm_is_that_of_the_unbiased_first_moment(host_run):
    for epoch, (state, info) in enumerate(zip(host_run.states, host_run.infos, strict=True)):
        moments = jax.tree.leaves(member(adam(state.train).mu, 1))
        norm = np.sqrt(sum((np.float64(moment) ** 2).sum() for moment in moments))
        expected = norm / (1 - 0.9 ** (5 * (epoch + 1)))
        assert float(info.gradient_norm[1]) == pytest.approx(expected, rel=1e-5)


def test_empty_slots_change_no_result(sum_state, ragged_bags, quick_hyper, sum_step):
    """The sum head learns from bags of 1 to 5 instances, in 5 slots or in 8."""
    index, valid = map(np.asarray, epoch_order(jax.random.key(0), 19, 5))
    ends, curves = [], []
    for bags in (ragged_bags, pad(ragged_bags, 8)):
        taken, curve = sum_state.train, []
        for _ in range(5):
            for batch in zip(index, valid, strict=True):
                taken, (loss, _) = sum_step(quick_hyper, bags, taken, *batch)
                curve.append(float(loss))
        ends.append(taken)
        curves.append(curve)
    assert_close(ends[0], ends[1])
    assert_close(curves[0], curves[1])
    assert sum(curves[0][-4:]) < 0.9 * sum(curves[0][:4]), "it learns"


# ---- stopping, and the best epoch: on rigged curves ----

EPOCHS = 8


def rigged_train_epoch(*args: Any) -> tuple[TrainState, training.StepInfo]:
    """In the place of an epoch's training: the one parameter counts the epochs."""
    state, zero = args[4], jnp.float32(0)
    return dataclasses.replace(state, params={"pooling": state.params["pooling"] + 1}), training.StepInfo(zero, zero)


def rigged_validate(model: MIL, params: Any, hyper: Hyper, bags: Bags) -> training.Validation:
    """In the place of a validation: the loss of the n-th epoch is the n-th number of the pool."""
    epoch, stats = params["pooling"].astype(int), training.blank_info().positive
    return training.Validation(jnp.asarray(bags.pool)[epoch - 1], jnp.float32(0), stats, stats)


Rigged = dict[int, Callable[[np.ndarray], tuple[FitState, training.EpochInfo]]]


@pytest.fixture(scope="module", params=["fit", "vmap of advance"])
def rigged(request: pytest.FixtureRequest, concat_model: MIL, train_bags: Bags, quick_hyper: Hyper) -> Rigged:
    """For a patience of 1, 2 and 3: a function of the losses [E] of all epochs, compiled once."""
    start = {"pooling": jnp.float32(0)}

    def run(config: FitConfig, curve: jax.Array) -> tuple[FitState, training.EpochInfo]:
        bags = Bags(curve, train_bags.view)
        given = (concat_model, config, quick_hyper, train_bags, bags)
        if request.param == "fit":
            return training.fit(*given, jax.random.key(0))
        state = training.init_fit(concat_model, training.member_key(jax.random.key(0)), 3, (6,))
        return jax.lax.scan(lambda s, _: training.advance(*given, s), state, length=EPOCHS)

    def in_a_crowd(config: FitConfig, curve: jax.Array) -> tuple[FitState, training.EpochInfo]:
        ascending = jnp.arange(EPOCHS, dtype=jnp.float32)
        return member(jax.vmap(partial(run, config))(jnp.stack([ascending, curve, -ascending])), 1)

    route = run if request.param == "fit" else in_a_crowd
    configs = {patience: FitConfig(epochs=EPOCHS, patience=patience) for patience in (1, 2, 3)}
    empty = jax.ShapeDtypeStruct((EPOCHS,), jnp.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "init_params", lambda *_: start)
        patch.setattr(training, "train_epoch", rigged_train_epoch)
        patch.setattr(training, "validate", rigged_validate)
        return {patience: jit(partial(route, config)).lower(empty).compile() for patience, config in configs.items()}


def stop_by_hand(curve: list[float], patience: int) -> tuple[float, int, int]:
    """Best loss, its epoch, and epochs trained."""
    best, best_epoch, stale = np.inf, 0, 0
    for epoch, loss in enumerate(curve, start=1):
        if loss < best:
            best, best_epoch, stale = loss, epoch, 0
        else:
            stale += 1
        if stale == patience:
            return best, best_epoch, epoch
    return best, best_epoch, len(curve)


def assert_stops(run: Rigged, curve: list[float], patience: int, end: tuple[float, int, int]) -> None:
    state, info = run[patience](np.array(curve, np.float32))
    _, best_epoch, epochs = end
    assert (float(state.best_loss), int(state.best_epoch), int(state.epoch)) == end
    assert float(state.best_params["pooling"]) == best_epoch, "the parameters of the best epoch"
    assert float(state.train.params["pooling"]) == epochs, "no epoch is trained after the last one"
    assert bool(training.has_stopped(state, FitConfig(epochs=EPOCHS, patience=patience)))
    blank = EPOCHS - epochs
    assert info.epoch.tolist() == [*range(1, epochs + 1), *[0] * blank]
    np.testing.assert_array_equal(info.val_loss, [*curve[:epochs], *[np.nan] * blank])


NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(("curve", "patience", "end"), [
    pytest.param([3, 2, 4, 5, 1, 6, 7, 8], 2, (2, 2, 4), id="stops before a better epoch"),
    pytest.param([3, 2, 4, 5, 1, 6, 7, 8], 3, (1, 5, 8), id="waits for a better epoch"),
    pytest.param([3, 2, 1, 2, 0, 0, 0, 0], 1, (1, 3, 4), id="patience of 1"),
    pytest.param([8, 7, 6, 5, 4, 3, 2, 1], 1, (1, 8, 8), id="never stops early"),
    pytest.param([2, 2, 2, 1, 1, 1, 1, 1], 2, (2, 1, 3), id="a tie is not better"),
    pytest.param([NAN] * 8, 3, (INF, 0, 3), id="NaN from the start"),
    pytest.param([INF] * 8, 3, (INF, 0, 3), id="infinite from the start"),
    pytest.param([3, NAN, 2, NAN, NAN, 1, 1, 1], 2, (2, 3, 5), id="NaN is not better"),
    pytest.param([NAN, NAN, 2, 3, 1, 9, 9, 9], 3, (1, 5, 8), id="a number is better than NaN"),
])  # fmt: skip
def test_early_stopping(curve, patience, end, rigged):
    assert stop_by_hand(curve, patience) == end
    assert_stops(rigged, curve, patience, end)


losses = st.sampled_from([0.5, 1.0, 2.0, 3.0, 4.0, NAN, INF])


@settings(deadline=None, max_examples=40)
@given(curve=st.lists(losses, min_size=EPOCHS, max_size=EPOCHS), patience=st.integers(1, 3))
def test_early_stopping_on_any_curve(rigged, curve, patience):
    assert_stops(rigged, curve, patience, stop_by_hand(curve, patience))


def test_a_stopped_member_does_not_change(host_run):
    """Bit by bit, its moments and step too, while another member goes on."""
    ends = host_run.ensemble.epochs_run
    assert ends.tolist() == [4, 6, 3]
    for i, end in enumerate(ends):
        for state, info in zip(host_run.states[end:], host_run.infos[end:], strict=True):
            assert_same_bits(member(state, i), member(host_run.states[end - 1], i))
            assert_same_bits(member(info, i), training.blank_info())
    before, after = (member(state, 1) for state in host_run.states[4:])
    assert int(after.train.step) == int(before.train.step) + 5


# ---- a whole run ----


def test_pure_fit_equals_the_host_loop_alone_and_vmapped_over_keys(
    host_run, concat_model, quick_config, quick_hyper, train_bags, val_bags
):
    """Epoch by epoch; the three are different programs, so up to rounding."""
    keys = jnp.stack([jax.random.fold_in(jax.random.key(0), i) for i in (0, 1, 6)])
    one = partial(training.fit, concat_model, quick_config, quick_hyper, train_bags, val_bags)
    state, curves = jit(jax.vmap(one))(keys)
    ours = host_run.ensemble
    alone = jit(one)(keys[0])
    assert_close((alone[1], alone[0].best_params), member((ours.curves, ours.members.params), 0))
    assert_close((curves, state.best_params), (ours.curves, ours.members.params))
    assert_same_bits((state.best_epoch, state.epoch), (ours.best_epoch, ours.epochs_run))


def test_best_parameters_are_those_of_the_best_epoch(host_run):
    for i, best in enumerate(host_run.ensemble.best_epoch):
        then = host_run.states[int(best) - 1].train.params
        assert_same_bits(member(host_run.ensemble.members.params, i), member(then, i))
