import json
from dataclasses import replace

import pytest

from sgquant_optuna.quantization.input_stores import InputContent, SparseContent
from sgquant_optuna.quantization.memory import (
    FeatureLayout,
    SiteSize,
    bucket_nbytes,
    exact_input_memory,
    exact_inputs,
    honest_memory,
    paper_memory,
    site_store,
)
from sgquant_optuna.quantization.sites import BitWidths, Site

LOW, HIGH = Site("conv1", "embedding", 0), Site("conv1", "embedding", 1)
ATTENTION = Site("conv1", "attention")


@pytest.fixture
def layout() -> FeatureLayout:
    sizes = {LOW: SiteSize(6, 9), HIGH: SiteSize(4, 9), ATTENTION: SiteSize(25, 3)}
    return FeatureLayout(sizes, num_nodes=10, num_buckets=2)


def test_honest_bytes_count_padding_ranges_buckets_and_attention(layout):
    bits = BitWidths({LOW: 3, HIGH: 1, ATTENTION: 4})
    low = 6 * (3 + 2) + 8  # 9 codes: 18 bits in a plane of 2, 9 bits in a plane of 1; a range
    high = 4 * 2 + 8  # 9 bits in 2 bytes
    attention = 38 + 8  # 75 codes of 4 bits in one run
    buckets = 2  # 10 nodes of 1 bit
    memory = honest_memory(layout, bits)
    assert memory.memory_bytes == low + high + attention + buckets
    assert memory.full_precision_bytes == 4 * (54 + 36 + 75)


def test_paper_bytes_count_dense_features_alone(layout):
    memory = paper_memory(layout, BitWidths({LOW: 3, HIGH: 1, ATTENTION: 4}))
    assert memory.memory_bytes == (54 * 3 + 36 * 1) / 8
    assert memory.full_precision_bytes == 4 * 90
    assert memory.average_bits == pytest.approx((54 * 3 + 36) / 90)
    assert memory.saving == pytest.approx(32 / memory.average_bits)


def test_full_precision_saves_nothing_and_needs_no_ranges(layout):
    bits = BitWidths(dict.fromkeys(layout.sizes, 32))
    assert paper_memory(layout, bits).saving == 1
    honest = honest_memory(layout, bits)
    assert honest.memory_bytes == honest.full_precision_bytes + bucket_nbytes(layout)


def test_the_papers_formula_comes_out_for_gat_on_pubmed():
    # Table III: 19717 nodes, 500 features and 64 hidden ones are 44.48 MB.
    sizes = {
        Site("conv1", "embedding"): SiteSize(19717, 500),
        Site("conv2", "embedding"): SiteSize(19717, 64),
        Site("conv1", "attention"): SiteSize(108365, 8),
    }
    layout = FeatureLayout(sizes, 19717)
    memory = paper_memory(layout, BitWidths(dict.fromkeys(sizes, 32)))
    assert round(memory.memory_bytes / 1e6, 2) == 44.48


@pytest.mark.parametrize(("buckets", "nbytes"), [(1, 0), (2, 2), (3, 3), (4, 3), (5, 5), (9, 5)])
def test_bucket_ids_take_the_bits_that_they_need(buckets, nbytes):
    assert bucket_nbytes(FeatureLayout({}, num_nodes=10, num_buckets=buckets)) == nbytes


def test_every_range_of_an_axis_counts():
    site = Site("conv1", "embedding")
    by_row = FeatureLayout({site: SiteSize(10, 8, num_ranges=10)}, 10)
    by_tensor = FeatureLayout({site: SiteSize(10, 8)}, 10)
    bits = BitWidths({site: 2})
    extra = honest_memory(by_row, bits).memory_bytes - honest_memory(by_tensor, bits).memory_bytes
    assert extra == 9 * 8


# 20 non-zeros in 10 rows of 9 columns, whose gaps take 30 bits: counts 3, classes 5, parameters 4,
# a start 2, gaps 4 bytes.
PLACES = 18
BINARY = InputContent(dict.fromkeys((1, 2, 32), SparseContent(20, 3, 1, 30)), lossless=(1, 2))
REAL = InputContent(dict.fromkeys((1, 2, 4, 32), SparseContent(20, 3, None, 30)))
DIVIDED = InputContent(
    dict.fromkeys((1, 2, 4, 32), SparseContent(20, 3, 3, 30)), row_value="1/count"
)


def test_the_input_counts_in_its_smallest_store():
    layout = FeatureLayout({LOW: SiteSize(10, 9, 1, BINARY), HIGH: SiteSize(10, 9, 1, REAL)}, 20)
    bits = BitWidths({LOW: 2, HIGH: 4})
    assert site_store(LOW, layout.sizes[LOW], 2) == ("sparse codebook", PLACES + 4)
    assert site_store(HIGH, layout.sizes[HIGH], 4) == ("sparse", PLACES + 10 + 8)
    assert site_store(HIGH, layout.sizes[HIGH], 1) == ("rows", 20 + 8)
    assert honest_memory(layout, bits).memory_bytes == 22 + 36
    # Float32 with the same cleverness: the binary rows as they are, the others' non-zeros in full.
    assert exact_input_memory(layout, bits).full_precision_bytes == 22 + (PLACES + 80)
    assert exact_input_memory(layout, bits).memory_bytes == 22 + 36


def test_what_a_width_rounds_to_zero_takes_no_bytes():
    left = SparseContent(5, 1, 1, 9)  # counts 2, classes 5, parameters 4, a start 2, gaps 2
    content = InputContent({**REAL.by_width, 1: left})
    assert site_store(HIGH, SiteSize(10, 9, 1, content), 1) == ("sparse codebook", 15 + 4)


def test_an_input_that_a_lossless_store_holds_in_as_few_bytes_need_not_be_searched():
    layout = FeatureLayout({LOW: SiteSize(10, 9, 1, BINARY), HIGH: SiteSize(10, 9, 1, REAL)}, 20)
    assert exact_inputs(layout, (1, 2, 4)) == {LOW: 1}
    assert exact_inputs(layout, (2, 4)) == {LOW: 2}
    assert exact_inputs(layout, (4, 8)) == {LOW: 32}
    assert exact_inputs(FeatureLayout({ATTENTION: SiteSize(25, 3)}, 10), (1, 2)) == {}


def test_binary_rows_divided_by_their_sums_need_not_be_searched():
    layout = FeatureLayout({LOW: SiteSize(10, 9, 1, DIVIDED)}, 20)
    assert exact_inputs(layout, (1, 2, 4)) == {LOW: 32}
    exact = BitWidths({LOW: 32})
    assert honest_memory(layout, exact).memory_bytes == PLACES
    assert exact_input_memory(layout, exact).full_precision_bytes == PLACES


def test_a_float32_value_for_each_row_may_be_more_than_a_bit_for_each_value():
    one = SparseContent(20, 3, None, 30)
    own = InputContent(dict.fromkeys((1, 2, 4, 32), one), row_value="own")
    layout = FeatureLayout({LOW: SiteSize(10, 9, 1, own)}, 20)
    assert site_store(LOW, layout.sizes[LOW], 32) == ("sparse row values", PLACES + 40)
    assert site_store(LOW, layout.sizes[LOW], 1) == ("rows", 20 + 8)
    assert exact_inputs(layout, (1, 2, 4)) == {}


@pytest.mark.parametrize("content", [BINARY, DIVIDED])
def test_a_layout_survives_json(layout, content):
    layout = replace(layout, sizes={**layout.sizes, HIGH: SiteSize(4, 9, 1, content)})
    assert FeatureLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


def test_a_site_without_a_width_is_an_error(layout):
    with pytest.raises(KeyError):
        honest_memory(layout, BitWidths({LOW: 1}))
