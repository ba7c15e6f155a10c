"""`apply(theta) == forward(merge(theta))` on functions that nobody prepared, gradients too."""

import jax
import pytest
import zoo.calls
import zoo.check as check
import zoo.decoder
import zoo.equinox
import zoo.linen
import zoo.loops
import zoo.merged
import zoo.nnx
import zoo.products
import zoo.trees
import zoo.weights
from zoo.case import cases

import lora_jax as lj

MODULES = (
    *(zoo.products, zoo.weights, zoo.loops, zoo.merged, zoo.calls, zoo.trees, zoo.decoder),
    *(zoo.linen, zoo.nnx, zoo.equinox),
)
CASES = {name: make for module in MODULES for name, make in cases(module).items()}

pytestmark = pytest.mark.usefixtures("x64", "promotion_of_flax")


@pytest.fixture
def promotion_of_flax(request):
    """Flax itself does not run in float64 with strict promotion; everything else here must."""
    flax = request.node.callspec.params["name"].startswith(("linen", "nnx"))
    with jax.numpy_dtype_promotion("standard" if flax else "strict"):
        yield


@pytest.mark.parametrize("name", CASES)
def test_apply_is_forward_of_merge(name, request):
    """By NumPy, which needs no compiling; calls, which XLA may treat specially, by XLA."""
    compiled = name in cases(zoo.calls) or "narrow_integers" in name
    if "narrow_integers" in name:  # cheaply compiled, the reference's gradient is at other rows
        request.getfixturevalue("full_optimization")
    case = CASES[name]()
    adapted = check.adapt(case)

    def everything():
        start, frozen = adapted.init(jax.random.key(0), case.params, *case.args, **case.kwargs)

        def apply(theta):
            return adapted.apply(theta, frozen, *case.args, **case.kwargs)

        def through_merge(theta):
            return case.forward(adapted.merge(theta, frozen), *case.args, **case.kwargs)

        theta, merged = check.random_like(start, seed=1), adapted.merge(start, frozen)
        both = (check.derivative(f, theta, case.reverse) for f in (apply, through_merge))
        return check.arrays(merged), *both

    merged, mine, theirs = (jax.jit if compiled else check.by_numpy)(everything)()
    check.assert_close(merged, check.arrays(case.params), tolerance=0)
    check.assert_close(mine, theirs)


@pytest.mark.parametrize("name", cases(zoo.trees) | cases(zoo.calls))
def test_apply_operation_by_operation(name):
    case = CASES[name]()
    adapted = check.adapt(case)
    start, frozen = adapted.init(jax.random.key(0), case.params, *case.args, **case.kwargs)
    theta = check.random_like(start, seed=1)
    merged = adapted.merge(theta, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(case.params)

    def apply():
        return adapted.apply(theta, frozen, *case.args, **case.kwargs)

    check.assert_close(apply(), jax.jit(apply)())


@pytest.mark.parametrize("name", CASES)
def test_merges_only_where_discover_says(name):
    case = CASES[name]()
    merges: set[str] = set()
    adapted = check.adapt(case, merges)
    uses = lj.discover(case.forward, case.params, *case.args, **case.kwargs)
    targets = [path for path in uses if check.is_target(case, path)]
    said = {path for path in targets if any(use.merges for use in uses[path].uses)}

    def run():
        trainable, frozen = adapted.init(jax.random.key(0), case.params, *case.args, **case.kwargs)
        return adapted.apply(trainable, frozen, *case.args, **case.kwargs)

    jax.eval_shape(run)
    assert merges == said == set(case.merged)
