"""The rules of CONTRIBUTING that a program can check: sizes, names, words of docstrings."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

import sgquant_optuna

ROOT = Path(__file__).parents[1]
PACKAGE = Path(sgquant_optuna.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
_DUNDER = {"__init__", "__main__"}

# An entry begins with the noun that it describes, so none of these comes first.
NO_NOUN = re.compile(
    r"(Of|Is|With|Whose|How|Where|What|Which|Called|Calls|Takes|As|Its|That|Those|When|By|Ends|"
    r"Makes|Trains|Until|From|Such|Between|Without|Made|Returns|Given|To|In|For)\b"
)


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_is_one_concept_that_can_be_read_at_once(path):
    assert len(path.read_text().splitlines()) <= 450


def test_no_name_stands_for_two_files():
    stems = Counter(path.stem for path in MODULES if path.stem not in _DUNDER)
    assert [stem for stem, count in stems.items() if count > 1] == []


def arguments_of(docstring: str) -> dict[str, str]:
    """Return the first line of each entry under Args, each on lines of its own."""
    block = re.search(r"^Args:\n((?:    .*\n|\n)*)", docstring + "\n", flags=re.MULTILINE)
    entries = re.findall(r"^    (\w+):\n        (.+)$", block[1] if block else "", re.MULTILINE)
    return dict(entries)


def test_the_entries_of_a_docstring_are_found():
    text = "Do.\n\nArgs:\n    one:\n        Seed of it,\n        and on.\n    b:\n        Of it.\n"
    assert arguments_of(text) == {"one": "Seed of it,", "b": "Of it."}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_an_entry_of_arguments_begins_with_a_noun(path):
    kinds = ast.ClassDef | ast.FunctionDef
    for node in ast.walk(ast.parse(path.read_text())):
        docstring = ast.get_docstring(node) if isinstance(node, kinds) else None
        for name, text in arguments_of(docstring or "").items():
            assert not NO_NOUN.match(text), f"{node.name}, {name}: {text}"


def test_the_files_that_contributing_names_exist():
    table = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", table)
    assert len(named) > 20
    for name in named:
        assert (PACKAGE / name).exists() or (ROOT / name).exists(), name


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_the_files_that_the_docs_name_exist(page):
    for name in re.findall(r"`((?:\w+/)+\w+\.py)`", page.read_text()):
        assert (PACKAGE / name).exists() or (ROOT / name).exists(), name
