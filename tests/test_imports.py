import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import sgquant_optuna

PACKAGE = Path(sgquant_optuna.__file__).parent

# Who may import whom; a folder stands for all its files. A file may import its own folder.
ALLOWED = {
    "exceptions": set(),
    "bit_widths": {"exceptions"},
    "forward_pass": {"exceptions"},
    "graphs": {"exceptions"},
    "storage": {"exceptions", "worker_name"},
    "artifacts": {"exceptions", "storage"},
    "sampler": {"exceptions"},
    "degree_buckets": set(),
    "sparse_products": set(),
    "sparse_features": {"sparse_products"},
    "fixed_graph": {"sparse_features", "sparse_products"},
    "quantization": {"bit_widths", "exceptions", "sparse_features"},
    "input_stores": {"bit_widths", "quantization"},
    "memory": {"bit_widths", "input_stores", "quantization"},
    "search_space": {"bit_widths"},
    "training": {"fixed_graph", "forward_pass"},
    "models": {"training"},
    "attachment": {
        "bit_widths",
        "exceptions",
        "forward_pass",
        "input_stores",
        "memory",
        "quantization",
        "sparse_features",
    },
    "fingerprint": {"exceptions", "sparse_features"},
    "stored_values": {"exceptions"},
    "study_record": {"exceptions", "memory", "stored_values"},
    "final_result": {"stored_values"},
    "trial_rows": {"storage"},
    "degree_labels": set(),
    "out_file": set(),
    "study_loading": {"exceptions", "storage"},
    "selection": {"exceptions", "final_result"},
    "study_status": {"exceptions", "selection", "study_record", "trial_rows"},
    "report_formats": {"memory", "selection", "study_report", "trial_rows"},
    "plots": {
        "bit_widths",
        "degree_labels",
        "exceptions",
        "memory",
        "sampler",
        "search_space",
        "selection",
        "study_record",
        "trial_rows",
    },
    "dashboard": {
        "exceptions",
        "final_result",
        "lease",
        "plots",
        "report_formats",
        "selection",
        "study_record",
        "study_report",
        "trial_rows",
    },
    "study_report": {
        "bit_widths",
        "degree_labels",
        "exceptions",
        "final_result",
        "memory",
        "selection",
        "study_record",
        "trial_rows",
    },
    # The one that knows all; only what drives a search may know it.
    "objective": {
        "attachment",
        "bit_widths",
        "degree_buckets",
        "fingerprint",
        "fixed_graph",
        "forward_pass",
        "graphs",
        "memory",
        "quantization",
        "search_space",
        "storage",
        "study_record",
        "training",
    },
    "study": {"objective", "sampler", "storage", "study_loading"},
    "final_measurement": {
        "bit_widths",
        "exceptions",
        "final_result",
        "fingerprint",
        "objective",
        "selection",
    },
    "search_plan": {
        "exceptions",
        "graphs",
        "models",
        "objective",
        "quantization",
        "search_space",
        "stored_values",
        "training",
    },
    "worker_name": set(),
    "lease": {"worker_name"},
    "trained_models": {"exceptions", "search_plan"},
    "preparation": {
        "artifacts",
        "exceptions",
        "lease",
        "objective",
        "search_plan",
        "storage",
        "study",
        "study_record",
        "trained_models",
    },
    "budget": {"storage", "worker_name"},
    "stopping": set(),
    "worker": {
        "budget",
        "exceptions",
        "objective",
        "preparation",
        "search_plan",
        "stopping",
        "storage",
        "worker_name",
    },
    "worker_processes": {"stopping"},
    "dask_engine": {"exceptions", "stopping", "worker_processes"},
    "packed": {
        "attachment",
        "bit_widths",
        "exceptions",
        "fingerprint",
        "fixed_graph",
        "forward_pass",
        "graphs",
        "input_stores",
        "memory",
        "models",
        "quantization",
        "sparse_features",
        "sparse_products",
    },
    "assignment": {"bit_widths", "degree_buckets", "exceptions", "quantization"},
    "study_export": {
        "assignment",
        "bit_widths",
        "exceptions",
        "final_result",
        "fingerprint",
        "objective",
        "out_file",
        "packed",
        "quantization",
        "search_plan",
        "selection",
        "study_record",
        "trained_models",
    },
}
# The doors: they may import anything, and nothing imports them.
FREE = {"cli", "__init__", "__main__"}


def unit(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_units(path: Path) -> set[str]:
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
    return found - {unit(path)}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_run_one_way(path):
    if unit(path) in FREE:
        return
    assert unit(path) in ALLOWED, f"{unit(path)} needs a row in the table"
    assert imported_units(path) <= ALLOWED[unit(path)]


def test_the_table_has_no_circle():
    order: list[str] = []
    left = dict(ALLOWED)
    while left:
        ready = [name for name, needs in left.items() if needs <= set(order)]
        assert ready, f"a circle among {sorted(left)}"
        order += ready
        for name in ready:
            del left[name]


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("sgquant_optuna", ["torch", "optuna", "sklearn"]),
        ("sgquant_optuna.sampler", ["torch", "sklearn"]),
        ("sgquant_optuna.storage", ["torch", "sklearn"]),
        ("sgquant_optuna.cli", ["torch", "optuna", "sklearn"]),
        ("sgquant_optuna.study_loading", ["torch", "sklearn", "scipy"]),
        ("sgquant_optuna.study_status", ["torch", "sklearn", "scipy"]),
        ("sgquant_optuna.report_formats", ["torch", "sklearn", "scipy", "matplotlib"]),
        ("sgquant_optuna.dashboard.server", ["torch", "sklearn", "matplotlib"]),
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
