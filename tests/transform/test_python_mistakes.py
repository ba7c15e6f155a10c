"""Mistakes in Python: each ends with one line that says what was expected."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import lora_jax as lj
import variants
from lora_jax.training.step import TrainState, cross_entropy, make_train_step, squared_error

pytestmark = pytest.mark.usefixtures("standard_promotion")

KEY, X = jax.random.key(0), jnp.ones((3, 8))
PARAMS = {"w": jnp.ones((8, 8)), "v": jnp.ones((8, 6))}
TX = optax.adam(1e-2)
MODEL = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
LINEN = linen.Dense(3)
LAYERS = linen.Sequential([LINEN])


def forward(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def adapted(function=forward, rank=2, **more):
    return lj.adapt(function, variants.make("lora", rank=rank), **more)


def start(**more):
    """A state before the first step, and what is frozen."""
    trainable, frozen = adapted(**more).init(KEY, PARAMS, X)
    return TrainState.create(adapted(**more), TX, trainable, frozen, jax.random.key(1)), frozen


def step(loss=cross_entropy, change=lambda state: state, order=lambda *given: given, **batch):
    """One step of a batch of three rows, some of whose entries are replaced or (None) left out.

    Args:
      order: the arguments of the step, made of the right ones.
    """

    def predict(trainable, frozen, batch, rng):
        return adapted().apply(trainable, frozen, batch["x"])

    state, frozen = start()
    given = {"x": X, "label": jnp.array([0, 1, 2]), "weight": jnp.ones(3), **batch}
    given = {name: value for name, value in given.items() if value is not None}
    make_train_step(adapted(), TX, predict, loss)(*order(change(state), frozen, given))
    return state, frozen


def update_of_other_trainables():
    """An own loop's call of the optimiser with a state that it made for another rank."""
    (state, frozen), (other, _) = start(), start(rank=3)
    tx = adapted().optimizer(TX, frozen)
    tx.update(state.trainable, tx.init(other.trainable), state.trainable)


def with_optimizer_state(state):
    """A state that `step` does not have."""
    return lambda kept: dataclasses.replace(kept, opt_state=state)


def used_again(use):
    """What `use(state, frozen)` says of a state that a step took."""
    return use(*step())


DONATED = r"given to a training step, which deletes it \(donation\): go on with the state that "
OTHERS = (
    r"opt_state belongs to another optimiser or other trainables: make it with TrainState\.crea"
)
NAMES = "names_from_patterns takes a dict of texts, such as .*, not "


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (
            lambda: adapted().init(PARAMS, KEY, X),
            r"^init\(key, params, \.\.\.\): a random key is needed, .*, not dict$",
        ),
        (
            lambda: adapted().gather(PARAMS, KEY, X, batches=[(X,)]),
            r"^gather\(key, params, \.\.\.\): a random key is needed, .*, not dict$",
        ),
        (
            lambda: adapted().optimizer(start()[1], TX),
            r"^optimizer\(tx, frozen\): expected the frozen of `init`, not a Grad",
        ),
        (
            lambda: adapted(MODEL),
            r"^adapt takes .*, not a Linear: forward, params = lj\.from_nnx\(model\) makes one of ",
        ),
        (
            lambda: adapted(linen.Dense(3)),
            r"^adapt takes .*, not a Dense: model\.apply is that of ",
        ),
        (
            lambda: adapted(LINEN.apply).init(KEY, LINEN.init(KEY, X)["params"], X),
            r"^expected the variables \{'params': params\}, as model\.init returns them: ",
        ),
        (
            lambda: adapted(jax.jit(LAYERS.apply)).init(KEY, LAYERS.init(KEY, X)["params"], X),
            r"^expected the variables \{'params': params\}, as model\.init returns them: ",
        ),
        (lambda: adapted(PARAMS), "^adapt takes a function of parameters, not a dict$"),
        (
            lambda: lj.from_nnx(forward),
            "^from_nnx takes a model of Flax NNX, not a function; adapt takes a function of ",
        ),
        (lambda: adapted(nnx.Linear), "^adapt takes .*, not a class: make a model of Linear first"),
        (lambda: adapted(linen.Dense), "^adapt takes .*, not a class: make a model of Dense first"),
        (
            lambda: adapted().optimizer("adam", start()[1]),
            r"^optimizer\(tx, frozen\): expected an optimiser, such as .*, not a str",
        ),
        (
            lambda: adapted().optimizer(optax.adam, start()[1]),
            r"^optimizer\(tx, frozen\): expected an optimiser, .*, not a function",
        ),
        (
            lambda: lj.from_nnx(nnx.Linear),
            "^from_nnx takes a model of Flax NNX, not a class: make a model of Linear first$",
        ),
        (lambda: lj.from_nnx(linen.Dense(3)), r", not a Dense; adapt takes model\.apply without "),
        (
            lambda: TrainState.create(TX, adapted(), {}, None, KEY),
            r"^TrainState\.create\(adapted, tx, \.\.\.\): expected what `adapt` gives first, ",
        ),
        (
            lambda: TrainState.create(adapted(), TX, start()[0].trainable, start()[1], 0),
            r"^TrainState\.create\(\.\.\., rng\): a random key is needed, .*, not 0$",
        ),
        (
            lambda: make_train_step(TX, adapted(), forward, cross_entropy),
            r"^make_train_step\(adapted, tx, \.\.\.\): expected what `adapt` gives first, ",
        ),
        (
            lambda: step(order=lambda state, frozen, batch: (frozen, state, batch)),
            r"^expected step\(state, frozen, batch\), got \(Frozen, TrainState, dict\)",
        ),
        (
            lambda: step(order=lambda state, frozen, batch: (state, batch, frozen)),
            r"^expected step\(state, frozen, batch\), got \(TrainState, dict, Frozen\)",
        ),
        (
            lambda: step(order=lambda state, frozen, batch: (state.trainable, frozen, batch)),
            r"^expected step\(state, frozen, batch\), got \(dict, Frozen, dict\)",
        ),
        (
            lambda: adapted(lj.from_nnx(MODEL)[0]).init(KEY, MODEL, X),
            r"^expected the parameters of a Linear: forward, params = lj\.from_nnx\(model\) gives",
        ),
        (
            lambda: step(weight=None),
            r"^the batch has no 'weight' \(0 for padding, else 1, one for each row\); it has ",
        ),
        (
            lambda: step(label=None),
            r"^the batch has no 'label' \(the labels, one for each row\); it has weight, x",
        ),
        (lambda: step(label=jnp.array([0, 1])), r"^batch\['label'\] has shape \(2,\), and the out"),
        (
            lambda: step(label=jnp.array([0])),
            r"^batch\['label'\] has shape \(1,\), and the outputs",
        ),
        (lambda: step(squared_error, label=jnp.ones((3, 1))), r"\(3, 6\): expected one label for "),
        (lambda: step(label=[0, 1, 2]), r"^batch\['label'\] is a list: expected an array"),
        (
            lambda: step(label=jnp.array([0.0, 1.0, 2.0])),
            r"^batch\['label'\] is of float32: expected classes, as integers",
        ),
        (
            lambda: step(label=np.array(["a", "b", "c"])),
            r"^batch\['label'\] has texts or other objects: expected numbers, such as the index ",
        ),
        (
            lambda: make_train_step(adapted(), TX, cross_entropy, lambda state, f, batch, rng: X),
            r"^make_train_step\(.*\): predict must take \(trainable, frozen, batch, rng\)$",
        ),
        (
            lambda: make_train_step(adapted(), TX, lambda state, f, batch, rng: X, len),
            r"^make_train_step\(.*\): loss must take \(outputs, batch\)$",
        ),
        (lambda: step(weight=jnp.ones(1)), r"^the loss has shape \(3,\), and batch\['weight'\] "),
        (
            lambda: step(lambda *given: cross_entropy(*given).mean()),
            r"^the loss has shape \(\), and batch\['weight'\] \(3,\): expected one number for ",
        ),
        (lambda: step(change=with_optimizer_state(TX.init(PARAMS))), OTHERS),
        (lambda: step(change=with_optimizer_state(start(targets="w")[0].opt_state)), OTHERS),
        (lambda: step(change=with_optimizer_state(start(rank=3)[0].opt_state)), OTHERS),
        (
            lambda: step(change=lambda s: with_optimizer_state(optax.sgd(1).init(s.trainable))(s)),
            OTHERS,
        ),
        (update_of_other_trainables, OTHERS),
        (lambda: used_again(lambda state, frozen: step(change=lambda _: state)), DONATED),
        (lambda: used_again(lambda s, frozen: adapted().apply(s.trainable, frozen, X)), DONATED),
        (lambda: used_again(lambda s, frozen: adapted().merge(s.trainable, frozen)), DONATED),
        (
            lambda: used_again(lambda s, f: TrainState.create(adapted(), TX, s.trainable, f, KEY)),
            DONATED,
        ),
        (lambda: lj.names_from_patterns({("a", "b"): "c"}), NAMES),
        (lambda: lj.names_from_patterns({"a": ("c", 1)}), NAMES),
        (lambda: lj.names_from_patterns([("a", "c")]), NAMES),
    ],
)
def test_a_mistake_says_what_was_expected(mistake, said):
    with pytest.raises(ValueError, match=said) as error:
        mistake()
    assert len(str(error.value).splitlines()) == 1


def test_a_failure_with_swapped_arguments_asks_for_their_order():
    with pytest.raises((IndexError, TypeError)) as error:
        adapted().init(KEY, X, PARAMS)
    assert "init(key, params, x): are the parameters before the inputs?" in error.value.__notes__


def test_a_bare_array_may_be_the_parameters_of_a_function_of_a_dict():
    model = adapted(lambda w, batch: batch["x"] @ w)
    made = model.init(KEY, PARAMS["w"], {"x": X})
    np.testing.assert_allclose(model.apply(*made, {"x": X}), X @ PARAMS["w"])


def test_a_key_is_of_use_after_the_steps_of_a_state_that_has_it():
    key = jax.random.key(1)
    trainable, frozen = adapted().init(KEY, PARAMS, X)
    state = TrainState.create(adapted(), TX, trainable, frozen, key)
    step(change=lambda _: state)
    assert state.rng.is_deleted() and not key.is_deleted()


def test_a_rank_above_full_is_warned_of():
    """8 x 8 takes rank 4 to be as many numbers as the weight's 64."""
    said = r"the adapter of 'w' trains 80 numbers and its weight has 64: lower its rank, or train "
    with pytest.warns(lj.TrainingWarning, match=said):
        adapted(rank=5, targets="w").init(KEY, PARAMS, X)


@pytest.mark.filterwarnings("error")
def test_a_rank_that_makes_as_many_numbers_as_the_weight_is_not():
    adapted(rank=4, targets="w").init(KEY, PARAMS, X)
