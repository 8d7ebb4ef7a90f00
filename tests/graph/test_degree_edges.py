import numpy as np
import pytest
import torch

from sgquant_optuna.graph.degree_edges import bucket_labels, check_degree_edges


def test_labels_tell_the_degrees():
    assert bucket_labels((4, 5, 8)) == ["0-3", "4", "5-7", "8+"]
    assert bucket_labels(()) == ["0+"]


@pytest.mark.parametrize(
    "edges",
    [(), (4,), [4, 8], np.array([4, 8]), torch.tensor([4, 8]), iter([1, 2**63 - 1]), range(2, 9)],
)
def test_rising_integers_of_any_kind_are_edges(edges):
    checked = check_degree_edges(edges)
    assert all(type(edge) is int for edge in checked)
    assert list(checked) == sorted(set(checked))


@pytest.mark.parametrize(
    "edges",
    [
        *((0,), (-1, 4), (8, 4), (4, 4), (2**63,), (4.0,), (4.5,), ("4",), (True, 4), (None,)),
        *((float("nan"),), (float("inf"),), ([4],), "48", b"48", None, 4, 4.5, torch.ones(2)),
        *({"x": 1}, [10**6] * 10**5),
    ],
    ids=lambda edges: repr(edges)[:20],
)
def test_other_edges_are_refused_in_a_short_line(edges):
    with pytest.raises(ValueError, match="degree edges: expected positive integers") as error:
        check_degree_edges(edges)
    assert len(str(error.value)) < 200
