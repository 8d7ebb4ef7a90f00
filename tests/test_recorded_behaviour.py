"""Fixed seeds give the configurations, values and bytes that were recorded.

What was recorded, and the command that records it anew, is in ``recorded_behaviour.py``. A machine
whose processor or libraries round otherwise cannot be held to the last bit and skips.
"""

import json

import pytest
import torch

from tests import recorded_behaviour as behaviour


@pytest.fixture(scope="module")
def recorded():
    return json.loads(behaviour.FILE.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory, recorded):
    if behaviour.rounding_of_torch() != recorded["rounding_of_torch"]:
        pytest.skip("torch rounds otherwise here than where the behaviour was recorded")
    if behaviour.rounding_of_scipy() != recorded["rounding_of_scipy"]:  # of the predictions
        pytest.skip("scipy rounds otherwise here than where the behaviour was recorded")
    return tmp_path_factory.mktemp("recorded")


@pytest.fixture(scope="module")
def searched(folder):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return json.loads(json.dumps(behaviour.search(folder)))
    finally:
        torch.set_num_threads(threads)


def test_a_search_measures_the_recorded_trials(searched, recorded):
    for trial, expected in zip(searched["trials"], recorded["search"]["trials"], strict=True):
        assert trial == expected


def test_the_final_report_says_what_was_recorded(searched, recorded):
    assert searched["final"] == recorded["search"]["final"]


def test_an_export_writes_the_recorded_bytes(folder, searched, recorded):
    assert behaviour.export(folder) == recorded["export"]


@pytest.mark.parametrize("name", behaviour.SAMPLES)
def test_the_sampler_asks_for_the_recorded_configurations(name, recorded):
    if behaviour.rounding_of_scipy() != recorded["rounding_of_scipy"]:
        pytest.skip("scipy rounds otherwise here than where the behaviour was recorded")
    sampled = behaviour.sample(**behaviour.SAMPLES[name])
    assert json.loads(json.dumps(sampled)) == recorded["samples"][name]
