"""The call of a model with a graph: the columns are chosen by the parameters of ``forward``."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import Tensor, nn
from torch_geometric.data import Data

from sgquant_optuna.exceptions import ModelError

Forward = Callable[[nn.Module, Data], Tensor]
"""Function that calls a model with a graph and returns class scores, ``[N, C]``."""


def forward(model: nn.Module, data: Data) -> Tensor:
    """Call a model with the columns of a graph that are parameters of its ``forward``.

    ``forward(x, edge_index)`` is called with these two columns. An optional parameter such as
    ``edge_weight`` is passed if the graph has the column. A ``forward`` whose only required
    parameter is ``data`` is called with the graph itself.

    Args:
        model:
            Module whose ``forward`` has named parameters.
        data:
            Graph with a column for each required parameter.

    Returns:
        Result of the model: class scores, ``[N, C]``.

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
