"""The grid: positions, features and distances computed by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sgquant_optuna.sampler.space import FiniteSpace, is_finite, single_value


def test_bit_widths_are_spaced_by_their_logarithm_in_either_encoding():
    categorical = FiniteSpace({"a": CategoricalDistribution([1, 2, 4, 8, 16])})
    ordinal = FiniteSpace({"a": IntDistribution(0, 4)})
    rows = np.arange(5)[:, None]
    expected = [[0.0], [0.25], [0.5], [0.75], [1.0]]
    np.testing.assert_allclose(categorical.features(rows), expected)
    np.testing.assert_allclose(ordinal.features(rows), expected)


def test_choices_without_an_order_are_one_hot():
    space = FiniteSpace({"a": CategoricalDistribution(["mean", None, True])})
    np.testing.assert_array_equal(space.features(np.array([[1], [2]])), [[0, 1, 0], [0, 0, 1]])


def test_numbers_that_do_not_ascend_are_one_hot():
    space = FiniteSpace({"a": CategoricalDistribution([8, 2, 4])})
    assert space.features(np.array([[0]])).shape == (1, 3)


def test_numbers_with_zero_are_spaced_linearly():
    space = FiniteSpace({"a": CategoricalDistribution([0, 1, 4])})
    np.testing.assert_allclose(space.features(np.array([[0], [1], [2]])).ravel(), [0, 0.25, 1])


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (IntDistribution(2, 8, step=3), [2, 5, 8]),
        (IntDistribution(1, 4, log=True), [1, 2, 3, 4]),
        (FloatDistribution(0.1, 0.4, step=0.1), [0.1, 0.2, 0.30000000000000004, 0.4]),
        (CategoricalDistribution([None, "x", False, 2.5]), [None, "x", False, 2.5]),
    ],
)
def test_positions_and_values_correspond(distribution, values):
    space = FiniteSpace({"a": distribution})
    assert space.size == len(values)
    assert [space.params_of((i,))["a"] for i in range(len(values))] == pytest.approx(values)
    assert [space.index_of({"a": v}) for v in values] == [(i,) for i in range(len(values))]
    assert [type(space.params_of((i,))["a"]) for i in range(len(values))] == list(
        map(type, values)
    )


@pytest.mark.parametrize("value", [3, 0, 11, "x", None, 2.5])
def test_a_value_that_is_not_on_the_grid_has_no_position(value):
    space = FiniteSpace({"a": IntDistribution(2, 8, step=3)})
    assert space.index_of({"a": value}) is None


def test_a_missing_parameter_has_no_position():
    space = FiniteSpace({"a": IntDistribution(0, 1), "b": IntDistribution(0, 1)})
    assert space.index_of({"a": 0}) is None


def test_parameters_are_in_the_order_of_their_names():
    space = FiniteSpace({"b": IntDistribution(0, 9), "a": IntDistribution(0, 9)})
    assert space.index_of({"b": 7, "a": 3}) == (3, 7)


def test_the_signature_depends_on_values_but_not_on_the_order_of_parameters():
    a, b = IntDistribution(0, 3), CategoricalDistribution([1, 2])
    signature = FiniteSpace({"a": a, "b": b}).signature
    assert FiniteSpace({"b": b, "a": a}).signature == signature
    assert FiniteSpace({"a": a, "b": CategoricalDistribution([1, 4])}).signature != signature


def test_all_lists_each_configuration_once():
    space = FiniteSpace({"a": IntDistribution(0, 2), "b": CategoricalDistribution("xy")})
    assert sorted(map(tuple, space.all().tolist())) == [(a, b) for a in range(3) for b in range(2)]


def test_distinct_and_without_drop_configurations():
    space = FiniteSpace({"a": IntDistribution(0, 2), "b": IntDistribution(0, 2)})
    rows = np.array([[2, 1], [0, 1], [2, 1]])
    np.testing.assert_array_equal(space.distinct(rows), [[0, 1], [2, 1]])
    np.testing.assert_array_equal(space.without(rows, np.array([[2, 1]])), [[0, 1]])


def test_a_logarithmic_integer_is_drawn_log_uniformly():
    space = FiniteSpace({"a": IntDistribution(1, 1000, log=True)})
    drawn = space.random(np.random.default_rng(0), 2000)[:, 0] + 1
    assert 0.25 < np.mean(drawn <= 10) < 0.45
    assert drawn.min() >= 1
    assert drawn.max() <= 1000


@settings(max_examples=50, deadline=None)
@given(st.integers(-50, 50), st.integers(0, 40), st.integers(1, 7), st.randoms())
def test_integers_round_trip(low, span, step, random):
    distribution = IntDistribution(low, low + span * step, step=step)
    space = FiniteSpace({"a": distribution})
    position = random.randrange(span + 1)
    assert space.index_of(space.params_of((position,))) == (position,)


def test_infinite_and_empty_spaces_are_refused():
    assert not is_finite(FloatDistribution(0, 1))
    with pytest.raises(ValueError, match="expected finitely many values of 'x'"):
        FiniteSpace({"x": FloatDistribution(0, 1)})
    with pytest.raises(ValueError, match="expected at least one parameter"):
        FiniteSpace({})


def test_the_single_value_of_a_parameter():
    assert single_value(CategoricalDistribution(["only"])) == "only"
    assert single_value(IntDistribution(4, 4)) == 4


def test_a_space_of_thousands_of_parameters_has_no_size_that_could_be_told():
    widths = CategoricalDistribution((1, 2, 4, 8))
    assert FiniteSpace({f"conv{number}": widths for number in range(2000)}).size == np.inf
