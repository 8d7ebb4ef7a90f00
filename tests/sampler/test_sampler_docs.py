"""The pages about the sampler: their code runs and their links lead somewhere."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("sampler.md", "sampler-results.md")


def test_the_code_of_the_manual_runs():
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "sampler.md").read_text(), re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:  # each continues the one before
        exec(compile(block, "docs/sampler.md", "exec"), names)
    assert names["answer"].drop <= 2.0


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#]+)", (DOCS / page).read_text())
    assert links
    for link in links:
        assert (DOCS / link).exists(), link
