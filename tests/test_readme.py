"""README and docs: short where they promise to be, links that lead somewhere, code that runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("README.md", "python.md")
EXAMPLES = [
    (page.name, code)
    for page in PAGES
    if page.name in RUN
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
]


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_an_example_runs(index, capsys):
    page, code = EXAMPLES[index]
    code = code.replace("n_trials=60", "n_trials=3")
    exec(compile(code, f"{page}, example {index}", "exec"), {})
    assert capsys.readouterr().out


def test_there_are_examples_on_both_pages():
    assert {page for page, _ in EXAMPLES} == set(RUN)


@pytest.mark.parametrize(
    ("page", "target"),
    [
        (page, target)
        for page in PAGES
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_links_lead_somewhere(page, target):
    assert (page.parent / target).exists()


def test_the_readme_is_read_in_three_minutes():
    assert len((ROOT / "README.md").read_text().split()) <= 750


def test_each_page_is_found_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    found = {page for page in PAGES if f"({page.relative_to(ROOT)})" in readme}
    for page in list(found):
        found |= {other for other in PAGES if f"({other.name})" in page.read_text()}
    assert set(PAGES) - found == {ROOT / "README.md"}
