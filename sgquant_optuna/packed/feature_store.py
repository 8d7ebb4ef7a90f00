"""Packed features as a PyG feature store: only the rows that a loader samples are unpacked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import FeatureStore, TensorAttr

from sgquant_optuna.packed.indexing import row_numbers
from sgquant_optuna.packed.packed_tensor import Rows


class PackedFeatureStore(FeatureStore):
    """Store of packed features by node type, and of plain columns such as labels beside them.

    Packed features are read-only. Other columns are put as they are, each under the name of its
    group and its own: ``store.put_tensor(y, group_name="paper", attr_name="y", index=None)``.
    A loader of PyG takes the store together with a graph store, ``(store, graph)``, and a worker
    process of it maps the same file.

    Args:
        features:
            Packed features, in memory or mapped from a file; for several node types, those of each
            by its name.
        group_name:
            Node type of features that have one type; ``None`` for graphs of one type.
        attr_name:
            Name of the attribute.

    Raises:
        ValueError:
            If there are features of several types, and a group name.
    """

    def __init__(
        self,
        features: Rows | Mapping[str, Rows],
        *,
        group_name: str | None = None,
        attr_name: str = "x",
    ) -> None:
        super().__init__()
        by_type: dict[str | None, Rows] = {}
        if isinstance(features, Mapping):
            if group_name is not None:
                raise ValueError(
                    f"group name: expected none for features by node type, got {group_name!r}"
                )
            by_type.update(features)
        else:
            by_type[group_name] = features
        self._packed = {(group, attr_name): rows for group, rows in by_type.items()}
        self._plain: dict[tuple[str | None, str], Tensor] = {}

    def get_all_tensor_attrs(self) -> list[TensorAttr]:
        """Return all attributes; loaders write their index into them, so each is a new one."""
        return [TensorAttr(*key) for key in (*self._packed, *self._plain)]

    def _put_tensor(self, tensor: Any, attr: TensorAttr) -> bool:
        key = (attr.group_name, attr.attr_name)
        if key in self._packed or attr.index is not None:
            return False
        self._plain[key] = torch.as_tensor(tensor)
        return True

    def _remove_tensor(self, attr: TensorAttr) -> bool:
        return self._plain.pop((attr.group_name, attr.attr_name), None) is not None

    def _get_tensor(self, attr: TensorAttr) -> Tensor:
        return self._multi_get_tensor([attr])[0]

    def _multi_get_tensor(self, attrs: list[TensorAttr]) -> list[Tensor]:
        """Return the rows of several attributes; an index that they share is read once."""
        known: dict[tuple[int, int], Tensor] = {}
        found = []
        for attr in attrs:
            column = self._column(attr)
            if attr.index is None:
                found.append(column if isinstance(column, Tensor) else _all_rows(column))
                continue
            key = (id(attr.index), int(column.shape[0]))
            if key not in known:
                known[key] = _numbers(attr.index, key[1])
            rows = known[key]
            found.append(column[rows] if isinstance(column, Tensor) else column.rows(rows))
        return found

    def _get_tensor_size(self, attr: TensorAttr) -> tuple[int, ...]:
        return tuple(self._column(attr).shape)

    def _column(self, attr: TensorAttr) -> Rows | Tensor:
        key = (attr.group_name, attr.attr_name)
        column: Rows | Tensor | None = self._packed.get(key, self._plain.get(key))
        if column is None:
            held = ", ".join(_shown(*known) for known in (*self._packed, *self._plain))
            raise KeyError(f"feature store: holds {held}, not {_shown(*key)}")
        return column


def _numbers(index: object, num_rows: int) -> Tensor:
    rows = row_numbers(index, num_rows)
    if rows is None:
        raise IndexError(f"feature store: expected numbers of rows, got {index!r:.60}")
    return rows.reshape(-1)


def _all_rows(rows: Rows) -> Tensor:
    out = torch.empty(rows.shape, device=rows.device)
    for nodes, block in rows.blocks():
        out[nodes] = block.to_dense()
    return out


def _shown(group_name: str | None, attr_name: str) -> str:
    return repr(attr_name) if group_name is None else f"{attr_name!r} of {group_name!r}"
