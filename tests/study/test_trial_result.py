import json
from dataclasses import replace

import pytest

from sgquant_optuna.quantization.sites import BitWidths, Site
from sgquant_optuna.study.drop_evidence import DropEvidence
from sgquant_optuna.study.drop_slope import DropSlope
from sgquant_optuna.study.trial_result import TrialResult, TrialScore, with_learned_bounds

BITS = BitWidths({Site("conv1", "embedding"): 4})
# Of 200 labelled nodes, one training loses nodes 3 and 5 and gains node 4.
EVIDENCE = DropEvidence(
    expected=(0.4,), measured=(0.5,), deviation=0.1, nodes=200, lost={3: 1, 4: -1, 5: 1}
)
RESULT = TrialResult(
    memory_bytes=100.0,
    saving=8.0,
    accuracy_drop=0.5,
    flips=3.0,
    trainings=1,
    evidence=EVIDENCE,
    estimated_drop=0.4,
    drop_bound=0.5,
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
    score = TrialScore.of(json.loads(json.dumps(attrs)))
    assert score is not None and score.evidence == EVIDENCE
    assert (score.memory_bytes, score.saving, score.drop_bound) == (100.0, 8.0, 0.5)


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


def test_a_slope_gives_estimate_and_bound():
    # k = 0.5 +- 0.5: 0.2 points, deviation hypot(0.4 * 0.5, 0.1) = 0.2236, z(0.9) = 1.2816.
    bounded = RESULT.with_slope(DropSlope(0.5, 0.5), 0.9)
    assert bounded.estimated_drop == pytest.approx(0.2)
    assert bounded.drop_bound == pytest.approx(0.2 + 1.2816 * 0.2236, abs=1e-4)


def test_after_a_first_look_the_expected_drop_counts_a_quarter_more():
    looked = replace(RESULT, trainings=0).with_slope(DropSlope(0.5, 0.0), 0.9)
    assert looked.estimated_drop == pytest.approx(0.25)


def test_without_evidence_the_drop_on_validation_nodes_counts():
    bounded = replace(RESULT, evidence=None).with_slope(DropSlope(3.0, 1.0), 0.9)
    assert (bounded.estimated_drop, bounded.drop_bound) == (0.5, 0.5)


def test_bounds_are_learned_from_all_trials():
    worse = replace(RESULT, evidence=replace(EVIDENCE, measured=(2.0,), lost={3: 2, 5: 2}))
    (alone,) = with_learned_bounds([RESULT], 0.9)
    beside, nothing, _ = with_learned_bounds([RESULT, None, worse], 0.9)
    assert nothing is None
    assert beside.drop_bound > alone.drop_bound
