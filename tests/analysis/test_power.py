"""Power of t-tests and of TOST: against the noncentral t, simulations, and each other."""

import math

import numpy as np
import pytest
from scipy import special, stats

from experiments.analysis import power
from experiments.analysis.power import Design, Task


@pytest.mark.parametrize("level", [0.05, 0.05 / 14])
@pytest.mark.parametrize("df", [4, 9, 19, 57.3])
def test_the_power_of_a_t_test_is_a_noncentral_t(df, level):
    critical = stats.t.isf(level / 2, df)
    for shift in (0.0, 1.0, 2.5, 4.0):
        expected = stats.nct.sf(critical, df, shift) + stats.nct.cdf(-critical, df, shift)
        for difference in (0.3 * shift, -0.3 * shift):
            found = power.difference_power(difference, 0.3, df, level)
            assert found == pytest.approx(expected, rel=1e-7)


def of_seeds(*deviations):
    """A design whose seeds are the only noise."""
    return Design(tuple(Task(each) for each in deviations))


def simulated(rng, seeds, difference, tests, count=200_000):
    """The share of studies with a positive test of (means, errors); the sd of differences is 1."""
    means = rng.normal(difference, 1 / math.sqrt(seeds), count)
    errors = np.sqrt(rng.chisquare(seeds - 1, count) / (seeds - 1) / seeds)
    return tests(means, errors).mean()


@pytest.mark.parametrize(("seeds", "difference"), [(2, 9.0), (3, 8.0), (5, 2.0), (20, 0.7)])
def test_power_is_the_share_of_simulated_studies(seeds, difference):
    """With few degrees of freedom, too, where SciPy's noncentral t fails."""
    rng, level = np.random.default_rng(seeds), 0.05 / 5
    design, df = of_seeds(1.0), seeds - 1
    two_sided = stats.t.isf(level / 2, df)
    found = power.difference_power(difference, design.error(seeds), design.df(seeds), level)
    share = simulated(rng, seeds, difference, lambda m, e: np.abs(m) > two_sided * e)
    assert found == pytest.approx(share, abs=0.005) and 0.02 < found < 0.98
    one_sided, margin = stats.t.isf(level, df), difference
    found = power.equivalence_power(margin, design.error(seeds), df, level)
    share = simulated(rng, seeds, 0.0, lambda m, e: np.abs(m) + one_sided * e < margin)
    assert found == pytest.approx(share, abs=0.005) and 0.02 < found < 0.98


def test_at_the_null_the_power_is_the_level():
    for df in (2, 19):
        assert power.difference_power(0.0, 1.0, df, 0.03) == pytest.approx(0.03, rel=1e-7)


def test_known_variance_is_the_limit():
    z, wanted = stats.norm.isf(0.025), stats.norm.ppf(0.8)
    assert power.detectable(0.1, 1e6, 0.05) == pytest.approx(0.1 * (z + wanted), rel=1e-4)
    # Equal methods: both one-sided tests must succeed, so each misses one case in ten.
    both = 0.1 * (stats.norm.isf(0.05) + stats.norm.ppf(0.9))
    assert power.smallest(power.equivalence_power, 0.1, 1e6, 0.05, 0.8) == pytest.approx(
        both, rel=1e-4
    )


def test_the_number_of_seeds_is_the_smallest_that_is_enough():
    """Ten for a difference of one sd are in Cohen's tables: power.t.test(type="paired") of R."""
    ask = power.difference_power
    assert power.seeds_needed(ask, of_seeds(0.6), 0.6, 0.05) == 10
    for design in (of_seeds(0.6), of_seeds(0.5, 1.0, 2.0)):
        for wanted, level in ((0.3, 0.05), (0.8, 0.05 / 14)):
            for each in (ask, power.equivalence_power):
                n = power.seeds_needed(each, design, wanted, level, 0.9)
                fewer, found = (
                    each(wanted, design.error(k), design.df(k), level) for k in (n - 1, n)
                )
                assert fewer < 0.9 <= found
    assert power.seeds_needed(ask, of_seeds(0.6), 100.0, 0.05) == 2
    assert power.seeds_needed(ask, of_seeds(0.6), 1e-4, 0.05) is None
    z = special.ndtri(0.975) + special.ndtri(0.8)  # of many seeds, where t is normal
    many = power.seeds_needed(ask, of_seeds(300.0), 1.0, 0.05)
    assert many == pytest.approx((300 * z) ** 2, 1e-4)


def test_the_noise_of_a_task_is_that_of_its_mean_squares():
    """Expected mean squares in closed form, there and back, and what seeds cannot take away."""
    task = Task(0.5, 12.0, 30.0, 900)
    found = task.squares(8, 2.0)
    assert found.variance == pytest.approx(0.5**2 / 8 + 12**2 / 1800 + 30**2 / (8 * 1800))
    assert found.df == 7 and task.squares(40).df > 39
    back = Task.of(found)
    assert (back.seeds, back.examples, back.rest) == pytest.approx((0.5, 12.0, 30.0))
    design = Design((task, Task(0.8)))
    assert design.of_examples == pytest.approx(12 / 30 / 2)
    assert design.error(10, 3.0) < design.error(10) < design.error(5)


def test_seeds_and_examples_are_the_fewest_that_are_enough():
    design, level = Design((Task(0.5, 20.0, 30.0, 900), Task(0.3, 10.0, 20.0, 300))), 0.01
    for ask in (power.difference_power, power.equivalence_power):
        # The examples leave an error of 0.44.
        assert power.seeds_needed(ask, design, 0.9, level) is None
        for seeds, wanted in ((5, 0.9), (12, 0.9), (12, 4.0)):
            times = power.examples_needed(ask, design, seeds, wanted, level)
            error, df = design.error(seeds, times), design.df(seeds, times)
            assert ask(wanted, error, df, level) == pytest.approx(0.8, abs=1e-4)
    assert power.examples_needed(power.difference_power, design, 2, 0.9, level) is None


def test_family():
    assert power.family_level(0.05, 14) == 0.05 / 14 and power.family_level(0.05, 0) == 0.05
