"""The problems and tables of the sampler's benchmarks."""

from pathlib import Path

import numpy as np
import optuna
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_the_optimum_is_the_least_memory_that_is_feasible(benchmarks):
    from synthetic_problems import Problem

    memory, drop = np.array([1.0, 2.0, 3.0, 4.0]), np.array([9.0, 0.6, 0.5, 0.1])
    problem = Problem("p", ((1, 2), (4, 8)), memory, drop)
    assert problem.optimum == 3.0
    assert problem.row((1, 0)) == 2


@pytest.mark.parametrize("ordinal", [True, False])
def test_a_trial_is_found_in_the_problem(benchmarks, ordinal):
    from synthetic_problems import Problem

    problem = Problem("p", ((1, 2), (4, 8, 16)), np.arange(6.0), np.zeros(6))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    trial = study.ask(problem.space(ordinal=ordinal))
    first, second = (trial.params[name] for name in problem.names)
    if not ordinal:
        first, second = (1, 2).index(first), (4, 8, 16).index(second)
    assert problem.row_of(trial.params, ordinal=ordinal) == 3 * first + second


def test_the_measured_tables_are_complete_and_not_trivial(benchmarks):
    from measured_table import load_table

    paths = sorted((BENCHMARKS / "data").glob("table_*.npz"))
    assert len(paths) >= 2
    for path in paths:
        problem, repeats = load_table(path)
        assert len(problem.memory) == len(repeats) >= 2000
        assert 0 < np.mean(problem.drop <= problem.max_drop) < 0.2
        assert problem.drop[0] > problem.max_drop  # one bit everywhere is not enough


def test_hypervolume_is_the_area_below_the_reference_point(benchmarks):
    from two_objectives import hypervolume

    memory, drop = np.array([1.0, 2.0, 2.0, 5.0]), np.array([3.0, 1.0, 2.0, 0.0])
    # Of the unit squares below (4, 4): three at drop 3 to 4, and two at each drop of 1 to 3.
    assert hypervolume(memory, drop, 4.0, 4.0) == 3 + 2 * 2


@pytest.mark.parametrize("name", ["smooth", "cliffs", "layers"])
def test_synthetic_problems_are_reproducible_and_not_trivial(benchmarks, name):
    from synthetic_problems import MAX_DROP, PROBLEMS

    first, second = PROBLEMS[name](3), PROBLEMS[name](3)
    np.testing.assert_array_equal(first.drop, second.drop)
    assert 0 < np.mean(first.drop <= MAX_DROP) < 0.1


def test_a_measured_table_is_read_as_it_was_made(benchmarks, tmp_path):
    from measured_table import load_table, make_table

    path = tmp_path / "table_small.npz"
    make_table(
        path,
        [(1, 2), (4, 8, 16)],
        lambda bits: (float(sum(bits)), [8 / bits[0], 10 / bits[0]]),
        names=["a", "b"],
        max_drop=5.0,
        command="the test",
    )
    problem, repeats = load_table(path)
    assert problem.widths == ((1, 2), (4, 8, 16))
    np.testing.assert_allclose(problem.memory, [5, 9, 17, 6, 10, 18])
    np.testing.assert_allclose(problem.drop, [9, 9, 9, 4.5, 4.5, 4.5])
    assert repeats.shape == (6, 2)
    assert problem.optimum == 6.0


def test_a_table_that_lacks_configurations_is_refused(benchmarks, tmp_path):
    from measured_table import load_table

    path = tmp_path / "table_partial.npz"
    np.savez(
        path,
        index=np.array([[0], [0]]),
        memory=np.ones(2),
        drop=np.ones((2, 1)),
        description=np.array('{"widths": [[1, 2]]}'),
    )
    with pytest.raises(ValueError, match="expected every configuration exactly once"):
        load_table(path)
