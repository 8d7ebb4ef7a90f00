"""The text of a claim."""

from sgquant_optuna.sampler.claims import CLAIM_KEY, Claim
from tests.sampler.toy_study import claims, run


def test_a_claim_of_another_version_is_ignored():
    assert Claim.of({CLAIM_KEY: "{}"}) is None
    assert Claim.of({CLAIM_KEY: "no JSON"}) is None


def test_a_claim_survives_its_text():
    claim = claims(run(1))[0]
    assert Claim.of({CLAIM_KEY: claim.to_json()}) == claim
    assert len(claim.to_json()) < 300
