"""Calls any model with the columns of a graph that its ``forward`` names."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import Tensor, nn
from torch_geometric.data import Data

from sgquant_optuna.exceptions import ModelError

Forward = Callable[[nn.Module, Data], Tensor]
"""How a model is called with a graph."""


def forward(model: nn.Module, data: Data) -> Tensor:
    """Call a model with the columns of a graph that its ``forward`` names.

    ``forward(x, edge_index)`` gets those two; optional parameters such as ``edge_weight`` get
    their column where the graph has it; a single parameter ``data`` or ``batch`` gets the graph.

    Returns:
        What the model returns: scores, ``[N, C]``.

    Raises:
        ModelError:
            If the graph lacks a column that ``forward`` needs.
    """
    parameters = list(inspect.signature(model.forward).parameters.values())
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in named if p.default is p.empty]
    if required == ["data"]:
        out: Tensor = model(data)
        return out
    columns = {p.name: data[p.name] for p in named if p.name in data}
    missing = [name for name in required if name not in columns]
    if missing:
        raise ModelError(
            f"{type(model).__name__}.forward needs {', '.join(missing)}, which the graph does "
            f"not have (it has {', '.join(data.keys())}); pass your own forward=lambda model, "
            f"data: ..."
        )
    out = model(**columns)
    return out
