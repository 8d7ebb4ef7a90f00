"""Packs the features of a graph that a packed model has not seen, with the ranges of its file."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from sgquant_optuna.attachment.input_contents import exact_content, with_width
from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.columns import check_edges, check_finite_features, check_type, column
from sgquant_optuna.graph.degree_buckets import AddDegreeBuckets
from sgquant_optuna.graph.fingerprint import EDGE_VALUES, edges_fingerprint
from sgquant_optuna.graph.sparse_features import SparseFeatures, as_sparse_features
from sgquant_optuna.graph.tensor_base import WrapperTensor
from sgquant_optuna.packed.feature_use import ExactFeatures, exact_part
from sgquant_optuna.packed.graph_features import GraphFeatures, input_part
from sgquant_optuna.packed.model_header import ModelHeader, ModelSite
from sgquant_optuna.packed.packed_input import PackedInput
from sgquant_optuna.quantization.affine import fake_quantize
from sgquant_optuna.quantization.input_stores import InputContent
from sgquant_optuna.quantization.memory import SiteSize
from sgquant_optuna.quantization.sites import FULL_PRECISION

Ranges = tuple[Tensor, Tensor]


def one_graph(graph: Data | Sequence[Data]) -> Data:
    """Return a shallow copy of a graph, or the union of several with their column ``batch``.

    Raises:
        GraphError:
            If it is neither.
    """
    if isinstance(graph, list | tuple):
        if not graph:
            raise GraphError("graphs: expected at least one, got an empty list")
        for one in graph:
            check_type(one)
        joined: Data = Batch.from_data_list(list(graph))
        return joined
    check_type(graph)
    return copy.copy(graph)


class GraphPacker:
    """Packs graphs for one model.

    Args:
        header:
            Header of the model.
        ranges:
            Scale and zero point of each site that takes the graph's features, ``[B, 1]`` or
            ``[B, F]``; ``None`` where a file does not hold them.
    """

    def __init__(self, header: ModelHeader, ranges: Mapping[str, Ranges | None]) -> None:
        self._header, self._ranges = header, ranges
        self._inputs = [site for site in header.sites if site.is_input]

    def features_of(self, data: Data) -> Tensor | None:
        """Return the features of a graph as an ordinary tensor; ``None`` if the model needs none.

        Raises:
            GraphError:
                If they are missing, or of another size or type than those of the calibration.
        """
        use = self._header.features
        if use.shape is None:
            return None
        x = column(data, "x")
        if isinstance(x, WrapperTensor):
            x = x.dense()
        if x.layout != torch.strided:
            x = x.to_dense()
        sizes = list(use.shape[1:])
        words = ", ".join(map(str, ["N", *sizes]))
        if list(x.shape[1:]) != sizes or x.dim() != len(use.shape):
            raise GraphError(
                f"column x: expected the features that the model takes, {use.dtype} [{words}], "
                f"got {list(x.shape)}"
            )
        if x.dtype != use.torch_dtype:
            got = str(x.dtype).removeprefix("torch.")
            raise GraphError(
                f"column x: expected {use.dtype} [{words}], as the graph of the calibration has, "
                f"got {got}; data.x = data.x.to(torch.{use.dtype})"
            )
        if not len(x):
            raise GraphError("column x: expected the features of at least one node, got none")
        if x.device.type != "cpu":
            raise GraphError(
                f"column x: a packed model runs on the CPU, got it on {x.device}; call it with "
                f"data.cpu()"
            )
        if x.is_floating_point():
            check_finite_features(x)
        detached: Tensor = x.detach()
        return detached

    def pack(self, data: Data, x: Tensor | None) -> GraphFeatures:
        """Pack the features of a graph; values outside of a range get its nearest end.

        Args:
            data:
                Graph with edges, and ``degree_bucket`` (``[N]`` int64) where the model has several
                buckets and does not hold their edges.
            x:
                Result of :meth:`features_of`.

        Raises:
            GraphError:
                If the graph does not fit the model, or the model holds ranges of single nodes.
        """
        if any(site.axis == "row" for site in self._header.sites):
            raise GraphError(
                "graph: the model has a range for each node of the graph that it was calibrated "
                "on, so it runs on no other; quantize with axis='tensor', 'bucket' or 'column'"
            )
        num_nodes = _num_nodes(data) if x is None else len(x)
        _check_edge_columns(data, num_nodes)
        bucket = self._bucket(data, num_nodes)
        inputs: dict[str, PackedInput] = {}
        contents: dict[str, Mapping[int, InputContent]] = {}
        lossless = []
        for site in self._inputs:
            assert x is not None
            of_site = bucket if len(site.bit_widths) > 1 else None
            made = self._on_graph(site, x, of_site)
            inputs[site.name] = self._packed(made, x, of_site)
            contents[site.name] = {
                number: size.content
                for number, size in made.sizes.items()
                if size.content is not None
            }
            if all(_is_lossless(made, number) for number in made.sizes):
                lossless.append(site.name)
        graph = GraphFeatures(
            edges=edges_fingerprint(data),
            num_nodes=num_nodes,
            shape=None if x is None else tuple(x.shape),
            bucket=bucket,
            num_buckets=self._header.layout.num_buckets,
            inputs=inputs,
            contents=contents,
        )
        if self._header.features.exact is not None:
            assert x is not None
            graph.has_own_exact = not lossless
            exact = inputs[lossless[0]] if lossless else _exact(x)
            graph.exact = ExactFeatures(exact)
        return graph

    def _bucket(self, data: Data, num_nodes: int) -> Tensor | None:
        """Return the degree bucket of each node, ``[N]`` uint8: the column, else by its degree."""
        num_buckets, edges = self._header.layout.num_buckets, self._header.degree_edges
        if num_buckets == 1:
            return None
        bucket: Tensor | None = data.get("degree_bucket")
        if bucket is None:
            if edges is None:
                raise GraphError(
                    f"column degree_bucket: expected one of {num_buckets} for each node, got "
                    f"none, and the file holds no degree edges; apply AddDegreeBuckets(...) with "
                    f"those of the calibration, or export with degree_edges="
                )
            bucket = AddDegreeBuckets(edges)(copy.copy(data)).degree_bucket
        assert bucket is not None
        fits = isinstance(bucket, Tensor) and bucket.dtype == torch.long
        if not fits or bucket.shape != (num_nodes,):
            got = "none"
            if isinstance(bucket, Tensor):
                got = f"{str(bucket.dtype).removeprefix('torch.')} {list(bucket.shape)}"
            raise GraphError(f"column degree_bucket: expected int64 [{num_nodes}], got {got}")
        low, high = int(bucket.min()), int(bucket.max())
        if low < 0 or high >= num_buckets:
            raise GraphError(
                f"column degree_bucket: expected 0 to {num_buckets - 1}, got {low} to {high}"
            )
        self._check_known(set(bucket.unique().tolist()))
        return bucket.to(torch.uint8)

    def _check_known(self, present: set[int]) -> None:
        """Refuse nodes of a bucket that had none at calibration: no range is known for them."""
        for site in self._header.sites:
            if len(site.bit_widths) > 1:
                for number in sorted(present - set(site.sizes)):
                    raise GraphError(
                        f"{site.name}: degree bucket {number} had no nodes at calibration, so it "
                        f"has no bit width; choose degree edges that every graph fills"
                    )

    def _on_graph(self, site: ModelSite, x: Tensor, bucket: Tensor | None) -> ModelSite:
        """Return a site with its sizes on another graph."""
        sizes = {}
        numbers = [0] if bucket is None else bucket.unique().tolist()
        for number in numbers:
            rows, width = (x if bucket is None else x[bucket == number]), site.bit_widths[number]
            content = exact_content(rows)
            if width != FULL_PRECISION:
                scale, zero_point = (part[number] for part in self._ranges_of(site))
                fake = fake_quantize(
                    rows, scale, zero_point, width, rounding=self._header.config.rounding
                )
                content = with_width(content, width, rows, fake)
            known = next(iter(site.sizes.values()))
            num_ranges = known.num_columns if site.axis == "column" else 1
            sizes[number] = SiteSize(len(rows), known.num_columns, num_ranges, content)
        is_sparse = self._keeps_zero(site) and isinstance(as_sparse_features(x), SparseFeatures)
        return replace(site, sizes=sizes, sparse=is_sparse)

    def _keeps_zero(self, site: ModelSite) -> bool:
        if site.is_identity:
            return True
        scale, zero_point = self._ranges_of(site)
        zero, rounding = torch.zeros_like(scale[:1]), self._header.config.rounding
        return not any(
            bool(fake_quantize(zero, one, other, width, rounding=rounding).any())
            for one, other, width in zip(scale, zero_point, site.bit_widths, strict=True)
            if width != FULL_PRECISION
        )

    def _packed(self, site: ModelSite, x: Tensor, bucket: Tensor | None) -> PackedInput:
        ranges = None if site.is_identity else self._ranges_of(site)
        rounding = self._header.config.rounding
        parts = [
            input_part(x, bucket, number, site, ranges, rounding) if number in site.sizes else None
            for number in range(len(site.bit_widths))
        ]
        return PackedInput(parts, bucket, sparse=site.sparse)

    def _ranges_of(self, site: ModelSite) -> Ranges:
        ranges = self._ranges[site.name]
        if ranges is None:
            raise GraphError(
                f"{site.name}: the file holds the features of its graph alone and not their "
                f"range, because an older version wrote it; export it again to run it on others"
            )
        return ranges


def _exact(x: Tensor) -> PackedInput:
    is_sparse = isinstance(as_sparse_features(x), SparseFeatures)
    return PackedInput([exact_part(x)], None, sparse=is_sparse)


def _is_lossless(site: ModelSite, number: int) -> bool:
    content = site.sizes[number].content
    assert content is not None
    return site.bit_widths[number] in (*content.lossless, FULL_PRECISION)


def _num_nodes(data: Data) -> int:
    if data.num_nodes is None:
        raise GraphError("graph: expected a number of nodes, data.num_nodes = ..., got none")
    return int(data.num_nodes)


def _check_edge_columns(data: Data, num_nodes: int) -> None:
    check_edges(data, num_nodes)
    edges: Any = data.get("edge_index")
    if edges is None:
        return
    for name in EDGE_VALUES:
        values = data.get(name)
        if isinstance(values, Tensor) and len(values) != edges.shape[1]:
            raise GraphError(
                f"column {name}: expected one row for each of {edges.shape[1]} edges, got "
                f"{list(values.shape)}"
            )
