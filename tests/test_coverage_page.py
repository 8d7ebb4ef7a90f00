"""The coverage page lists every convolution of the installed PyG, and its command works."""

import re
import sys
from pathlib import Path

import pytest
from torch_geometric.nn import conv

from tests.search.test_tasks import CASES

ROOT = Path(__file__).parents[1]
ROWS = re.compile(r"^\| ([^|]+) \| (.+) \|$", flags=re.MULTILINE)


def rows_of(page):
    return {
        name: [cell.strip() for cell in cells.split("|")]
        for name, cells in ROWS.findall(page.partition("## Tasks")[0])
        if not cells.startswith("attach")
    }


@pytest.fixture(scope="module")
def written():
    return (ROOT / "docs" / "coverage.md").read_text()


@pytest.fixture(scope="module")
def coverage():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import coverage_page
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return coverage_page


def test_every_convolution_of_pyg_is_tried(coverage):
    assert sorted(coverage.CONVOLUTIONS) == sorted(conv.__all__)


def test_the_page_has_a_row_for_each_model(coverage, written):
    assert list(rows_of(written)) == [*coverage.CONVOLUTIONS, *coverage.WHOLE_MODELS]


def test_the_page_has_a_row_for_each_task(written):
    rows = ROWS.findall(written.partition("## Tasks")[2])
    tried = [name.partition(" (")[0] for name, _ in rows]
    assert tried == ["task", *CASES, "node types"]


def test_a_cell_without_yes_has_a_reason(written):
    reasons = re.findall(r"^(\d+)\. \S", written, flags=re.MULTILINE)
    for cells in rows_of(written).values():
        assert len(cells) == 5
        for cell in cells:
            assert cell == "yes" or re.fullmatch(r"no \((\d+)\)", cell)[1] in reasons


def test_some_rows_are_tried_again(coverage, written):
    page = coverage.page(("GCNConv", "SGConv", "GCN2Conv", "sgquant_optuna.GAT"))
    for name, cells in rows_of(page).items():
        attached = [cell == "yes" for cell in cells[:3]]
        assert attached == [cell == "yes" for cell in rows_of(written)[name][:3]]
        assert all(attached)
