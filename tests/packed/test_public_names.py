import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from sgquant_optuna import packed


def test_every_public_name_resolves():
    assert sorted(packed.__all__) == packed.__all__
    assert set(packed.__all__) == set(packed._MODULE_OF)
    for name in packed.__all__:
        assert getattr(packed, name) is not None
        # An imported submodule would hide the name.
        assert importlib.util.find_spec(f"sgquant_optuna.packed.{name}") is None
    assert dir(packed) == packed.__all__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = packed.nothing


def test_the_package_alone_brings_no_torch():
    code = "import sys, sgquant_optuna.packed; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_every_public_name_imports_without_the_kernels():
    code = "import sys; sys.modules['numba'] = None; from sgquant_optuna.packed import *"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys; import sgquant_optuna.packed.kernels; print('numba' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_the_example_of_the_docs_runs(capsys):
    docs = Path(__file__).parents[2] / "docs" / "packed.md"
    section = docs.read_text().split("## Mini-batches")[1]
    example = section.split("```python\n")[1].split("```")[0]
    exec(compile(example, str(docs), "exec"), {})
    assert capsys.readouterr().out == "(250, 64)\n(3, 64)\n"
