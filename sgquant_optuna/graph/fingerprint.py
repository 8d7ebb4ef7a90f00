"""Fingerprints of graphs and models: sizes, hashes, and a sketch of the weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch_geometric.nn import MessagePassing

from sgquant_optuna.graph.node_types import (
    ONLY_TYPE,
    Graph,
    edge_parts,
    node_parts,
    num_columns,
)
from sgquant_optuna.graph.sparse_features import SparseFeatures

_SKETCH_SIZE = 16
EDGE_VALUES = ("edge_attr", "edge_weight", "edge_type")
"""Columns with a row for each edge."""
EDGE_COLUMNS = ("edge_index", *EDGE_VALUES, "adj_t")
"""Columns of a graph that describe its edges."""


def graph_fingerprint(
    data: Graph, read: Sequence[str], node_type: str | None = None
) -> dict[str, Any]:
    """Return the sizes of a graph, and a hash of every column that a search reads.

    Args:
        data:
            Graph.
        read:
            Names of the columns besides features and edges, those of the task.
        node_type:
            Node type of the task, if the graph is heterogeneous.

    Returns:
        Numbers of ``nodes``, ``edges`` and ``features`` (by node type, if there are several), and
        16 hexadecimal digits ``hash``, which covers all node types and relations.
    """
    return {
        "nodes": data.num_nodes,
        "edges": data.num_edges,
        "features": num_columns(data),
        "hash": _hash_of(data, ("x",), read, node_type or ONLY_TYPE),
    }


def edges_fingerprint(data: Graph) -> dict[str, Any]:
    """Return the number of edges and a hash of the edge columns, without the node features.

    Packed models use it: they store the features themselves.

    Returns:
        Number of ``edges``, and 16 hexadecimal digits ``hash``.
    """
    return {"edges": data.num_edges, "hash": _hash_of(data)}


def model_fingerprint(model: nn.Module) -> dict[str, Any]:
    """Return the class of a model, and a hash of its ``repr`` and the shapes of its parameters.

    Where the ``repr`` of a module hides its children, theirs are added. A function in it is told
    by its name and by the names and constants that its code uses, not by its address, which
    differs in each process.

    Returns:
        Name ``class``, and 16 hexadecimal digits ``hash``.
    """
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    # What torch.fx made, as to_hetero() does, shows no forward in its repr.
    code = model.code if isinstance(model, GraphModule) else ""
    text = f"{_without_addresses(model)}{shapes}{code}"
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {"class": type(model).__name__, "hash": digest}


def weights_sketch(model: nn.Module) -> list[float]:
    """Project all parameters on 16 fixed random directions.

    Rounding errors of another machine or thread count hardly change the projection, as they would
    change a hash. Weights that were trained from another seed have a different projection.

    Returns:
        16 numbers with Euclidean norm 1, or zeros if all parameters are zero.
    """
    generator = torch.Generator().manual_seed(0)
    sketch = torch.zeros(_SKETCH_SIZE, dtype=torch.float64)
    for value in model.state_dict().values():
        flat = value.detach().cpu().double().flatten()
        signs = torch.randint(0, 2, (_SKETCH_SIZE, len(flat)), generator=generator)
        sketch += (signs.double() * 2 - 1) @ flat
    norm = float(sketch.norm())
    return [round(number, 6) for number in (sketch / norm if norm else sketch).tolist()]


_ADDRESS = re.compile(r"\b0x[0-9a-f]+\b")


def _without_addresses(model: nn.Module) -> str:
    text = "\n".join([repr(model), *_hidden(model)])
    if _ADDRESS.search(text) is None:
        return text
    codes = {id(one): _code_words(code) for one, code in _functions(model)}
    return _ADDRESS.sub(lambda found: codes.get(int(found[0], 16), ""), text)


def _hidden(module: nn.Module) -> Iterator[str]:
    """Yield the readable forms of children that those of their parents hide.

    Convolutions show the sizes of their linear layers.
    """
    if isinstance(module, MessagePassing):
        return
    shown = repr(module)
    for name, child in module.named_children():
        own = repr(child)
        if own.replace("\n", "\n  ") not in shown:
            yield f"{name}: {own}"
        yield from _hidden(child)


def _functions(model: nn.Module) -> Iterator[tuple[object, CodeType]]:
    """Yield the functions that the modules hold, also in lists, dictionaries and ``partial``."""
    left: list[object] = [value for module in model.modules() for value in vars(module).values()]
    seen: set[int] = set()
    while left:
        value = left.pop()
        if id(value) in seen or isinstance(value, Tensor | nn.Module):
            continue
        seen.add(id(value))
        code = getattr(value, "__code__", None)
        if isinstance(code, CodeType):
            yield value, code
        elif isinstance(value, partial):
            left += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, list | tuple | set):
            left += value


def _code_words(code: CodeType) -> str:
    """Return the names and constants of some code, which all versions of Python keep alike."""
    constants = [_constant_words(one) for one in code.co_consts if one is not None]
    return " ".join([*code.co_varnames, *code.co_names, *code.co_freevars, *sorted(constants)])


def _constant_words(value: object) -> str:
    if isinstance(value, CodeType):
        return _code_words(value)
    if isinstance(value, frozenset):  # in the order of hashes, which differ in each process
        return repr(sorted(map(repr, value)))
    return repr(value)


def _hash_of(
    data: Graph,
    of_nodes: Sequence[str] = (),
    of_items: Sequence[str] = (),
    node_type: str = ONLY_TYPE,
) -> str:
    """Hash columns of the nodes of all types, of all edges, and of the items of a task."""
    parts, digest = node_parts(data), hashlib.sha256()
    named = [(kind, part, of_nodes) for kind, part in parts.items()]
    named += [(kind, part, EDGE_COLUMNS) for kind, part in edge_parts(data).items()]
    named.append((node_type, parts[node_type] if of_items else {}, of_items))
    for kind, part, names in named:
        if kind:
            digest.update(f"{kind} {part.get('num_nodes')}".encode())
        for name in names:
            for one in _parts(part.get(name)):
                digest.update(name.encode())
                digest.update(one.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _parts(column: object) -> list[Tensor]:
    """Return the dense tensors that a column is made of; none if it is no tensor."""
    if isinstance(column, SparseFeatures):
        return [column.dense()]
    if not isinstance(column, Tensor):
        return []
    if column.layout == torch.strided:
        # NumPy has no bfloat16.
        return [column.view(torch.int16) if column.dtype == torch.bfloat16 else column]
    coo = column.to_sparse_coo().coalesce()
    return [coo.indices(), coo.values()]
