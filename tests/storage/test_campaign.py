"""Short runs of the campaign of faults."""

from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_fifty_workers_that_claim_at_once_measure_nothing_twice(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from claims_simulation import simulate

    found = simulate(50, seed=1)
    assert found.complete == found.asked > 90
    assert found.duplicates == 0
    assert found.written > 1  # they did want the same
