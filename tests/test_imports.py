"""The rooms of the package import one way, and no import brings what it does not need."""

import ast
import graphlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import sgquant_optuna

PACKAGE = Path(sgquant_optuna.__file__).parent

# From low to high. A room may import those of lower layers, never one beside it.
LAYERS = (
    {"exceptions"},
    {"sampler", "storage", "graph"},
    {"quantization"},
    {"attachment"},
    {"packed", "study"},
    {"search"},
    {"cli"},
    {"__init__", "__main__"},
)
LAYER_OF = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        for module in modules:
            package, _, rest = module.partition(".")
            if package == "sgquant_optuna":
                found.add(rest.split(".")[0] or "__init__")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    room = room_of(path)
    for other in imported_rooms(path) - {room}:
        assert LAYER_OF[other] < LAYER_OF[room]


def test_the_sampler_imports_nothing_of_ours():
    for path in (PACKAGE / "sampler").rglob("*.py"):
        assert imported_rooms(path) <= {"sampler"}


def test_the_root_holds_nine_rooms():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert len(rooms) <= 9
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "exceptions"}


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("sgquant_optuna", ["torch", "optuna", "sklearn"]),
        ("sgquant_optuna.sampler", ["torch", "sklearn"]),
        ("sgquant_optuna.storage", ["torch", "sklearn"]),
        ("sgquant_optuna.cli", ["torch", "optuna", "sklearn"]),
        ("sgquant_optuna.study.loading", ["torch", "sklearn", "scipy"]),
        ("sgquant_optuna.study.status", ["torch", "sklearn", "scipy"]),
        ("sgquant_optuna.study.formats", ["torch", "sklearn", "scipy", "matplotlib"]),
        ("sgquant_optuna.study.dashboard.server", ["torch", "sklearn", "matplotlib"]),
    ],
)
def test_an_import_does_not_bring_what_it_does_not_need(module, without):
    code = f"import sys, {module}; print([m for m in {without} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_exported_name_resolves():
    assert sorted(sgquant_optuna.__all__) == sgquant_optuna.__all__
    assert set(sgquant_optuna.__all__) == set(sgquant_optuna._MODULE_OF)
    for name in sgquant_optuna.__all__:
        assert getattr(sgquant_optuna, name) is not None
        # An imported submodule would hide the name.
        assert importlib.util.find_spec(f"sgquant_optuna.{name}") is None
    assert dir(sgquant_optuna) == sgquant_optuna.__all__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = sgquant_optuna.nothing


def imported_files(path: Path, files: set[str]) -> set[str]:
    """Dotted names of our files that any import statement of a file names, lazy ones too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if names <= files else {node.module, *names}
    return found & files


def test_no_circle_among_files():
    names = {
        ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in MODULES
    }
    imports = {name: imported_files(path, set(names)) - {name} for name, path in names.items()}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names the files
