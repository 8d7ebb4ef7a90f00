"""The registry's copy passes Optuna's suites for samplers."""

from collections.abc import Callable

import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

import optunahub

module = optunahub.load_local_module("samplers/sgquant", registry_root="package")


class TestSGQuantSampler(
    BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase
):
    """All suites that suit a sampler for one or more objectives."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        """Make a small sampler."""
        return lambda: module.SGQuantSampler(n_measure=2, n_sample=50, seed=0)
