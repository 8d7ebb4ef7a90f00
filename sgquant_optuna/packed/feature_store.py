"""Packed features as a PyG feature store: only the rows that a loader samples are unpacked."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch_geometric.data import FeatureStore, TensorAttr

from sgquant_optuna.packed.indexing import row_numbers
from sgquant_optuna.packed.packed_features import PackedFeatures


class PackedFeatureStore(FeatureStore):
    """Read-only store of packed features under one group and attribute name.

    Args:
        features:
            Packed features, in memory or mapped from a file.
        group_name:
            Node type; ``None`` for graphs of one type.
        attr_name:
            Name of the attribute.
    """

    def __init__(
        self, features: PackedFeatures, *, group_name: str | None = None, attr_name: str = "x"
    ) -> None:
        super().__init__()
        self.features = features
        self._attr = TensorAttr(group_name, attr_name)

    def get_all_tensor_attrs(self) -> list[TensorAttr]:
        """Return the one attribute."""
        return [self._attr]

    def _put_tensor(self, tensor: Any, attr: TensorAttr) -> bool:
        return False  # read-only

    def _remove_tensor(self, attr: TensorAttr) -> bool:
        return False

    def _get_tensor(self, attr: TensorAttr) -> Tensor:
        if (attr.group_name, attr.attr_name) != (self._attr.group_name, self._attr.attr_name):
            raise KeyError(
                f"feature store: holds {self._attr.attr_name!r}, not {attr.attr_name!r}"
            )
        if attr.index is None:
            return self.features.to_dense()
        rows = row_numbers(attr.index, self.features.shape[0])
        if rows is None:
            raise IndexError(f"feature store: expected numbers of rows, got {attr.index!r}")
        return self.features.rows(rows.reshape(-1))

    def _get_tensor_size(self, attr: TensorAttr) -> tuple[int, ...]:
        return self.features.shape
