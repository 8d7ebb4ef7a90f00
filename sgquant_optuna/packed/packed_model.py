"""A model that runs on packed features: codes are stored, one block at a time is float32."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import MessagePassing

from sgquant_optuna.attachment.attention import quantized_class
from sgquant_optuna.attachment.caches import suspend_caches
from sgquant_optuna.attachment.class_switch import switch_class
from sgquant_optuna.attachment.hops import HOPS, install_hops, with_states
from sgquant_optuna.attachment.layer_arguments import (
    ROOT,
    node_dim,
)
from sgquant_optuna.exceptions import GraphError, ModelError, PackingError, QuantizerBypassedError
from sgquant_optuna.graph.fingerprint import EDGE_COLUMNS, edges_fingerprint
from sgquant_optuna.graph.forward_pass import Forward, OfType, forward
from sgquant_optuna.graph.node_types import Graph, check_types_are, edge_parts, node_parts
from sgquant_optuna.packed.argument_hooks import replace_argument
from sgquant_optuna.packed.graph_features import GraphFeatures, PassRecord
from sgquant_optuna.packed.graph_packer import GraphPacker, one_graph
from sgquant_optuna.packed.input_placeholder import InputPlaceholder
from sgquant_optuna.packed.message_passing import MessagePasser, Quantize
from sgquant_optuna.packed.model_file import ModelContents
from sgquant_optuna.packed.model_header import ModelSite
from sgquant_optuna.packed.site_packer import CurrentPass, SitePacker
from sgquant_optuna.quantization.affine import fake_quantize
from sgquant_optuna.quantization.memory import FeatureLayout, Memory, honest_memory
from sgquant_optuna.quantization.sites import FULL_PRECISION


class PackedModel(nn.Module):
    """Runs a quantized model on features that are stored packed.

    The scores are those of the fake-quantized model: sums run in the same order, so that hidden
    features get the same codes.

    Memory holds the graph's features in the store that the accounting counts, and 4 bytes a node
    (8 more in sparse stores) that find their rows. While a layer runs, it also holds the packed
    input of the layer, its output in float32, and blocks of about 1000 rows or 16000 edges.
    ``linear``, products with the adjacency, and attention of ``GATConv``, ``GATv2Conv`` and
    ``AGNNConv`` run block by block, so attention of all edges, ``[E, H]``, is never held. Other
    convolutions get their input unpacked. Attention of other convolutions (``TransformerConv``,
    registered ones) is quantized but whole. Between two layers features are float32, as the
    model's own ``forward`` holds them. A model of the paper frees them as soon as they are packed,
    another model when the next layer is done. Inference only, on the CPU: there are no gradients.

    Args:
        fields:
            Header of :class:`~sgquant_optuna.packed.model_file.ModelContents`.
        tensors:
            Tensors by name.
        model:
            Instance of the same architecture, whose weights are replaced in a copy; may be left
            out for models of the paper.
        forward:
            Function that calls the model with the graph.
        fast:
            Whether to pack hidden features by the compiled kernel, which makes the same bytes; by
            default where it is installed.

    Raises:
        ModelError:
            If the model is of another architecture, or is needed and missing.
        PackingError:
            If fields and tensors do not fit one another.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        model: nn.Module | None = None,
        *,
        forward: Forward = forward,
        fast: bool | None = None,
    ) -> None:
        super().__init__()
        contents = ModelContents(fields, tensors)
        self.fields, self._sites = contents.fields, contents.header.sites
        self._layout, self.bit_widths = contents.header.layout, contents.header.bit_widths
        self._rounding = contents.header.config.rounding
        self._types = types = contents.header.types
        self._forward = forward if types.answers is None else OfType(forward, types.answers)
        self._frees, self._fast = model is None, fast
        self.model = contents.plain_model(model)
        suspend_caches(self.model)
        self._use, self._graph = contents.header.features, contents.graph_features()
        inputs = [site for site in self._sites if site.is_input]
        ranges = {site.name: contents.input_ranges(site) for site in inputs}
        self._graph_packer = GraphPacker(contents.header, ranges)
        self._now = CurrentPass()
        self._record: PassRecord | None = None
        self._is_other = False
        self._checked: tuple[Any, ...] | None = None
        attention: dict[str, Quantize | None] = {}
        for site in self._sites:
            if site.component == "attention":
                is_root = site.layer == ROOT and not hasattr(self.model, ROOT)
                attention["" if is_root else site.layer] = self._attention(site, contents)
        self._packers = self._pack_features(contents)
        self._pass_messages(attention)
        self.eval()

    def _pack_features(self, contents: ModelContents) -> dict[str, SitePacker]:
        """Put a packer at each argument and at the hops that a site serves."""
        header = contents.header
        served = Counter(
            name for of_layer in header.arguments.values() for name in of_layer.values()
        )
        packers = {
            site.name: SitePacker(
                site,
                contents,
                self._now,
                frees=self._frees,
                fast=self._fast,
                is_shared=served[site.name] > 1,
            )
            for site in header.sites
            if site.component == "embedding"
        }
        for path, arguments in header.arguments.items():
            layer = self._layer(path)
            for argument, name in arguments.items():
                is_own = header.is_own(path, argument)
                change = partial(packers[name], node_dim=node_dim(layer), is_own=is_own)
                replace_argument(layer, path, argument, change, name)
        for path, unused in self._types.unused.items():
            layer = self._layer(path)
            for argument in unused:
                replace_argument(layer, path, argument, _zeros, path)
        for path, ports in header.hops.items():
            conv, packer = self._layer(path), packers[header.hop_site(path)]
            states = with_states(conv)
            if states is not None:
                conv.add_module(HOPS, packer)
                switch_class(conv, states)
            elif isinstance(conv, MessagePassing):
                install_hops(conv, packer, list(ports))
            else:
                raise PackingError(f"hops: expected a convolution, got {path!r}")
        return packers

    def _layer(self, path: str) -> nn.Module:
        try:
            return self.model.get_submodule(path)
        except AttributeError:
            raise PackingError(f"packed model: the model has no layer {path!r}") from None

    def forward(
        self, graph: Graph | Sequence[Data] | Tensor, edge_index: Tensor | None = None
    ) -> Tensor:
        """Return the outputs of the model, such as class scores ``[N, C]``.

        Of a heterogeneous graph they are those of the node type of the task.

        Args:
            graph:
                Graph that the model was packed for, or its ``edge_index`` alone: its ``x`` is not
                read, the features are in the file. To a file without features any graph, with
                ``x``; a list of graphs is their union.
            edge_index:
                Edges of any graph, whose ``x`` (``[N, F]``) stands first then.

        Raises:
            GraphError:
                If the edges are not those of the file, or a graph does not fit the model.
            QuantizerBypassedError:
                If the forward pass does not reach a quantized layer.
        """
        if edge_index is not None:
            graph = Data(x=graph, edge_index=edge_index)
            return self.on(graph)._run(graph)
        if self._types.is_hetero or isinstance(graph, HeteroData):
            check_types_are(graph, self._types.counts)
        if isinstance(graph, HeteroData):
            data: Graph = copy.copy(graph)
        else:
            data = Data(edge_index=graph) if isinstance(graph, Tensor) else one_graph(graph)
        if self._graph is None:
            return self.on(data)._run(data)
        self._check_edges(data, self._graph)
        return self._run(data)

    def on(self, graph: Data | Sequence[Data]) -> PackedModel:
        """Return the model with the features of another graph packed in the place of the file's.

        They are packed with the ranges of the file: values outside get the nearest end, as in the
        fake-quantized model. Where widths depend on the degree, a node has the bucket of the
        column ``degree_bucket``, else that of its degree by the degree edges of the file. Weights
        are shared. Call the result with the same graph.

        Args:
            graph:
                Graph with ``x`` (``[N, F]``, with the type and F of the calibration) and edges,
                or a list of graphs, whose union gets a column ``batch``.

        Raises:
            GraphError:
                If the graph does not fit the model, or the model has ranges of single nodes.
        """
        if self._types.is_hetero:
            raise GraphError(
                "graph: the model is of several node types, so it runs on the graph of its file "
                "alone"
            )
        data = one_graph(graph)
        x = self._graph_packer.features_of(data)
        other = copy.copy(self)
        other._graph, other._is_other = self._graph_packer.pack(data, x), True
        other._record = None
        other._checked = _versions(data)
        wanted = {(name, call) for name, calls in self._use.constant.items() for call in calls}
        if wanted and x is not None:
            other._keep_constants(data, x, wanted)
        return other

    def _keep_constants(self, data: Data, x: Tensor, wanted: set[tuple[str, int]]) -> None:
        """Run once with the features themselves, and keep what layers take of them alone."""
        self._now.x, self._now.wanted = x, wanted
        try:
            self._run(data, x)
        finally:
            self._now.x, self._now.wanted = None, ()
        self._record = None

    def _run(self, data: Graph, x: Tensor | None = None) -> Tensor:
        """Return the outputs on the graph whose features are held."""
        assert self._graph is not None
        data = copy.copy(data)
        self._give_features(data, self._graph)
        if x is not None:
            data.x = x
        record = PassRecord({site.name: site for site in self._sites})
        self._now.graph, self._now.record = self._graph, record
        try:
            with torch.no_grad():
                scores = self._forward(self.model, data)
        finally:
            for packer in self._packers.values():
                packer.end_pass()
        missed = {site.name for site in self._sites} - set(record.nbytes)
        if missed:
            raise QuantizerBypassedError(f"the forward pass went round {', '.join(missed)}")
        self._record = record
        return scores

    def train(self, mode: bool = True) -> PackedModel:
        """Stay in evaluation mode: packed features take no gradient."""
        super().train(False)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedModel:
        """Refuse moves and casts: ``to``, ``cuda`` or ``half`` would reach the weights alone."""
        probe = fn(torch.zeros(1))
        if probe.device.type != "cpu" or probe.dtype != torch.float32:
            raise ModelError(
                f"packed model: runs on the CPU in float32, not on {probe.device} in "
                f"{probe.dtype}; leave it there and move its scores, packed(data).to(...)"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def holds_features(self) -> bool:
        """Whether it holds the features of a graph; a model alone is called with any graph."""
        return self._graph is not None

    @property
    def memory(self) -> Memory:
        """Memory of the bit widths by the honest accounting, on the graph of :attr:`layout`."""
        return honest_memory(self.layout, self.bit_widths)

    @property
    def layout(self) -> FeatureLayout:
        """Sizes of the sites: on the graph of :meth:`on`, else on that of the calibration.

        Raises:
            RuntimeError:
                Before the first forward pass on the graph of :meth:`on`.
        """
        if not self._is_other:
            return self._layout
        if self._record is None or self._graph is None:
            raise RuntimeError("sizes of a graph: call the model with it first")
        return self._record.layout(self._graph)

    @property
    def stored_nbytes(self) -> dict[str, int]:
        """Bytes that the last forward pass stored, by part, ranges included.

        Attention counts as its packed codes, though only a block of it is held at one time.

        Raises:
            RuntimeError:
                Before the first forward pass, and for a file without features: ask the result of
                :meth:`on`.
        """
        if self._record is None or self._graph is None:
            on = "" if self._graph is not None else ", there = packed.on(data) and there(data)"
            raise RuntimeError(f"stored bytes: call the model with its graph first{on}")
        return {**self._record.nbytes, "bucket ids": self._graph.bucket_nbytes}

    @property
    def exact_nbytes(self) -> int:
        """Bytes of the exact features, which no accounting of the layers counts.

        They are stored where the model uses the graph's features outside of its quantized layers,
        unless one of these stores them without loss.
        """
        return 0 if self._graph is None else self._graph.exact_nbytes

    def _give_features(self, data: Graph, graph: GraphFeatures) -> None:
        """Put what stands for the features into the graph that the model is called with."""
        if self._types.is_hetero:
            self._give_features_by_type(data)
        elif graph.shape is None:
            data.num_nodes = graph.num_nodes
        elif graph.exact is not None:
            data.x = graph.exact
        else:
            columns = [value for _, value in data if isinstance(value, Tensor)]
            constants = frozenset(map(id, (*columns, *self.model.buffers())))
            data.x = InputPlaceholder(graph.shape, self._use.torch_dtype, constants)

    def _give_features_by_type(self, data: Graph) -> None:
        taken = {self._types.of_site(site.name) for site in self._sites if site.is_input}
        for name, part in node_parts(data).items():
            width = self._types.columns.get(name)
            if width is not None:
                shape = (self._types.counts[name], width)
                # No score depends on the features of a type that no site takes.
                is_held = name in taken
                part.x = InputPlaceholder(shape) if is_held else torch.zeros(1, 1).expand(shape)

    def _check_edges(self, data: Graph, graph: GraphFeatures) -> None:
        now = _versions(data)
        if self._checked is not None and all(
            one[0] is other[0] and one[1] == other[1]
            for one, other in zip(self._checked, now, strict=True)
        ):
            return
        for part in edge_parts(data).values():
            edges = part.get("edge_index", part.get("adj_t"))
            if not isinstance(edges, Tensor):
                raise GraphError("column edge_index: expected a tensor [2, E], got none")
            if edges.device.type != "cpu":
                raise GraphError(
                    f"column edge_index: a packed model runs on the CPU, got it on "
                    f"{edges.device}; call it with data.cpu()"
                )
        expected, found = graph.edges, edges_fingerprint(data)
        if expected != found:
            raise GraphError(
                f"graph: expected the one that the model was packed for ({expected['edges']} "
                f"edges, hash {expected['hash']}), got {found['edges']} edges, hash "
                f"{found['hash']}; packed.on(graph) runs it on another"
            )
        self._checked = now

    def _pass_messages(self, attention: dict[str, Quantize | None]) -> None:
        """Let the convolutions pass messages block by block, and quantize their attention."""
        for path in MessagePasser(self.model, attention).fallback:
            conv = self.model.get_submodule(path)
            to = quantized_class(conv)
            if to is None:
                raise ModelError(f"{path}: no class is registered that quantizes its attention")
            conv.add_module("attention_quantizer", _AttentionQuantizer(attention[path]))
            switch_class(conv, to)

    def _attention(self, site: ModelSite, contents: ModelContents) -> Quantize:
        """Return what is done with the attention of a block of edges."""
        name, (width,) = site.name, site.bit_widths
        if width == FULL_PRECISION:
            return partial(self._count_attention, name)
        scale, zero_point = contents.stored_ranges(site)

        def quantize(alpha: Tensor) -> Tensor:
            self._count_attention(name, alpha)
            return fake_quantize(alpha, scale, zero_point, width, rounding=self._rounding)

        return quantize

    def _count_attention(self, name: str, alpha: Tensor) -> Tensor:
        self._now.record.add_attention(name, alpha.numel())
        return alpha


class _AttentionQuantizer(nn.Module):
    """Quantizer of attention in the form that a registered class calls."""

    def __init__(self, quantize: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self._quantize = quantize

    def forward(self, alpha: Tensor) -> Tensor:
        return alpha if self._quantize is None else self._quantize(alpha)


def _zeros(x: Tensor) -> Tensor:
    """Return what stands for features that no score depends on; it takes no memory."""
    return torch.zeros(1, 1).expand(x.shape)


def _versions(data: Graph) -> tuple[Any, ...]:
    """Return the columns of the edges, and how often each was changed in place."""
    columns = [part.get(name) for part in edge_parts(data).values() for name in EDGE_COLUMNS]
    return tuple((column, getattr(column, "_version", None)) for column in columns)
