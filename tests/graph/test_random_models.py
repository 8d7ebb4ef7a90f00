"""Random small models train as in a plain loop, or are refused by name."""

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgquant_optuna.exceptions import SgquantError

_FILE = Path(__file__).parents[2] / "benchmarks" / "fuzz_models.py"
_SPEC = importlib.util.spec_from_file_location("fuzz_models", _FILE)
fuzz = sys.modules["fuzz_models"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fuzz)

LAYERS = st.builds(
    fuzz.Layer,
    name=st.sampled_from([*fuzz.CONVS, *fuzz.OTHERS]),
    edges=st.sampled_from(fuzz.EDGES),
    residual=st.booleans(),
    again=st.booleans(),
)
RECIPES = st.builds(
    fuzz.Recipe,
    layers=st.lists(LAYERS, min_size=1, max_size=4).map(tuple),
    jumping=st.booleans(),
    seed=st.integers(0, 99),
)


@pytest.mark.filterwarnings("ignore")  # plain PyG warns at itself
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(RECIPES)
def test_a_random_model_trains_as_in_a_plain_loop_or_is_refused_by_name(recipe):
    try:
        assert fuzz.difference(recipe) is None
    except SgquantError as error:
        assert "\n" not in str(error)
