import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution

from sgquant_optuna.quantization.sites import Site
from sgquant_optuna.study.search_space import BitWidthSearchSpace

SITES = [
    Site("conv1", "embedding", 0),
    Site("conv1", "embedding", 1),
    Site("conv1", "attention"),
    Site("conv2", "embedding", 0),
    Site("conv2", "embedding", 1),
    Site("conv2", "attention"),
]


@pytest.mark.parametrize(
    ("granularity", "names"),
    [
        ("uniform", ["bits"]),
        ("lwq", ["conv1", "conv2"]),
        ("cwq", ["embedding", "attention"]),
        ("taq", ["bucket0", "bucket1", "attention"]),
        (
            "lwq+cwq",
            ["conv1/embedding", "conv1/attention", "conv2/embedding", "conv2/attention"],
        ),
        (
            "taq+lwq",
            [
                "conv1/bucket0",
                "conv1/bucket1",
                "conv1/attention",
                "conv2/bucket0",
                "conv2/bucket1",
                "conv2/attention",
            ],
        ),
        ("cwq+taq", ["embedding/bucket0", "embedding/bucket1", "attention"]),
        ("LWQ + cwq+taq", [str(site) for site in SITES]),
    ],
)
def test_a_granularity_is_the_parts_of_a_site_that_stay_in_the_name(granularity, names):
    space = BitWidthSearchSpace(SITES, granularity=granularity)
    assert list(space.names) == names


def test_sites_of_one_name_share_one_width():
    space = BitWidthSearchSpace(SITES, granularity="lwq", candidates=(1, 4))
    bits = space.from_params({"conv1": 1, "conv2": 4})
    assert {str(site): width for site, width in bits.items()} == {
        "conv1/embedding/bucket0": 1,
        "conv1/embedding/bucket1": 1,
        "conv1/attention": 1,
        "conv2/embedding/bucket0": 4,
        "conv2/embedding/bucket1": 4,
        "conv2/attention": 4,
    }


def test_candidates_are_sorted_categories():
    space = BitWidthSearchSpace(SITES, granularity="uniform", candidates=(8, 1, 4, 4))
    assert space.distributions == {"bits": CategoricalDistribution((1, 4, 8))}


def test_ordinal_parameters_are_indices_into_the_candidates():
    space = BitWidthSearchSpace(
        SITES, granularity="uniform", candidates=(2, 8, 32), encoding="ordinal"
    )
    assert space.distributions == {"bits": IntDistribution(0, 2)}
    assert set(space.from_params({"bits": 1}).values()) == {8}
    assert space.uniform_params(32) == {"bits": 2}
    with pytest.raises(ValueError, match="expected an index below 3, got 3"):
        space.from_params({"bits": 3})


@pytest.mark.parametrize("encoding", ["categorical", "ordinal"])
def test_a_trial_suggests_every_parameter(encoding):
    space = BitWidthSearchSpace(SITES, granularity="lwq", candidates=(1, 4), encoding=encoding)
    trial = optuna.create_study().ask()
    bits = space.suggest(trial)
    assert trial.distributions == space.distributions
    assert bits == space.from_params(trial.params)


@pytest.mark.parametrize(
    ("frozen", "searched"),
    [
        ("conv1/embedding/bucket1", 5),
        ("conv1/embedding", 4),
        ("conv2", 3),
        ("conv2/attention", 5),
    ],
)
def test_frozen_sites_keep_their_width_and_are_not_searched(frozen, searched):
    space = BitWidthSearchSpace(SITES, frozen={frozen: 32}, candidates=(1, 2))
    assert len(space.names) == searched
    bits = space.from_params(space.uniform_params(1))
    for site in SITES:
        assert bits[site] == (32 if str(site).startswith(frozen) else 1)
    assert space.widths == (1, 2, 32)


def test_a_frozen_name_is_whole_words():
    sites = [Site("conv1", "embedding"), Site("conv11", "embedding")]
    space = BitWidthSearchSpace(sites, frozen={"conv1": 8})
    assert space.names == ("conv11/embedding",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "lwq+depth"}, "granularity: expected 'uniform' or lwq, cwq and taq"),
        ({"granularity": ""}, "granularity: expected"),
        ({"candidates": ()}, "candidate bit widths: expected at least one"),
        ({"candidates": (0, 4)}, "candidate bit widths: expected one of"),
        ({"candidates": (4, 64)}, "candidate bit widths: expected one of"),
        ({"frozen": {"conv9": 8}}, "frozen site: expected one of conv1/embedding/bucket0"),
        ({"frozen": {"conv1": 9}}, "frozen width of conv1: expected one of"),
        ({"frozen": {"conv1": 8, "conv2": 8}}, "every site is frozen"),
        ({"encoding": "onehot"}, "encoding: expected one of"),
    ],
)
def test_bad_options_say_what_was_expected(options, message):
    with pytest.raises(ValueError, match=message):
        BitWidthSearchSpace(SITES, **options)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "parameters: expected one for 'bits'"),
        ({"bits": 3}, r"parameter 'bits': expected one of \(1, 2, 4, 8\), got 3"),
    ],
)
def test_parameters_outside_the_space_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        BitWidthSearchSpace(SITES, granularity="uniform").from_params(params)
