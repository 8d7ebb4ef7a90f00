import subprocess
import sys

import pytest

TORCH_FREE = ("sites", "layout", "input_stores", "memory", "quantizer_config")
OTHERS = ("affine", "packing", "quantizers", "ranges")


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        (TORCH_FREE, ["torch", "torch_geometric", "optuna"]),
        (TORCH_FREE + OTHERS, ["torch_geometric", "optuna"]),
    ],
)
def test_an_import_does_not_bring_what_it_does_not_need(modules, without):
    names = ", ".join(f"sgquant_optuna.quantization.{module}" for module in modules)
    code = f"import sys, {names}; print([m for m in {without} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
