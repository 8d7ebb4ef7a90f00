"""The package for OptunaHub: made from the sampler's source, and working on its own."""

import runpy
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "optunahub" / "package" / "samplers" / "sgquant"

PROGRAM = """
import sys, types
import optuna
sys.modules["sgquant_optuna"] = None  # any import of it fails
sys.path.insert(0, sys.argv[1])
import sgquant
sys.modules["optunahub"] = types.SimpleNamespace(load_module=lambda name: sgquant)
optuna.logging.set_verbosity(optuna.logging.ERROR)
import runpy
runpy.run_path(sys.argv[1] + "/sgquant/example.py", run_name="__main__")
assert "torch" not in sys.modules
"""


def test_the_published_copy_runs_its_example_without_this_package(tmp_path):
    publish = runpy.run_path(str(FOLDER / "publish.py"))["publish"]
    target = publish(tmp_path)
    assert target == tmp_path / "samplers" / "sgquant"
    assert {"README.md", "LICENSE", "__init__.py", "example.py"} <= {
        f.name for f in target.iterdir()
    }
    for module in target.glob("*.py"):
        assert "sgquant_optuna." not in module.read_text()
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(target.parent)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    # Four bits for each layer cost 24 and have an error of 6 / 16 = 0.375. The least that keeps
    # the error at 0.8 or below is 16: two layers of four bits (2 / 16) and four of two would be
    # 0.125 + 1.0, too much; four of four and two of two make 0.25 + 0.5 = 0.75 with 20 bits.
    assert result.stdout.startswith("20.0 ")


def test_publishing_twice_replaces_the_copy(tmp_path):
    publish = runpy.run_path(str(FOLDER / "publish.py"))["publish"]
    (publish(tmp_path) / "stale.py").touch()
    assert not (publish(tmp_path) / "stale.py").exists()


def test_the_registry_needs_a_front_matter():
    readme = (FOLDER / "README.md").read_text()
    head = readme.split("---")[1]
    for key in ("author", "title", "description", "tags", "optuna_versions", "license"):
        assert f"\n{key}: " in head
    for section in ("Abstract", "APIs", "Installation", "Example"):
        assert f"\n## {section}\n" in readme
