import pytest

from sgquant_optuna.quantization.sites import BitWidths, Site
from sgquant_optuna.study.trial_result import TrialResult, TrialScore

BITS = BitWidths({Site("conv1", "embedding"): 4})
RESULT = TrialResult(
    memory_bytes=100.0,
    accuracy_drop=0.5,
    saving=8.0,
    accuracy=79.5,
    paper_memory_bytes=80.0,
    paper_saving=10.0,
    average_bits=3.2,
    bit_widths=BITS,
    seconds=1.5,
)


def test_attributes_are_read_as_they_were_written():
    attrs = RESULT.to_attrs()
    assert attrs["bit_widths"] == {"conv1/embedding": 4}
    assert TrialResult.of({**attrs, "worker": "host:1"}) == RESULT
    assert TrialScore.of(attrs) == TrialScore(memory_bytes=100.0, accuracy_drop=0.5, saving=8.0)


@pytest.mark.parametrize("missing", TrialResult.names())
def test_a_trial_that_lacks_a_value_was_not_measured(missing):
    attrs = {name: value for name, value in RESULT.to_attrs().items() if name != missing}
    assert TrialResult.of(attrs) is None


@pytest.mark.parametrize(
    ("limit", "violation", "feasible"), [(0.5, 0.0, True), (0.25, 0.25, False), (1.0, -0.5, True)]
)
def test_a_drop_at_the_limit_is_feasible(limit, violation, feasible):
    assert RESULT.violation(limit) == violation
    assert RESULT.is_feasible(limit) is feasible
