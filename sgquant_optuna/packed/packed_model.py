"""A model that runs on packed features: codes are stored, one block at a time is float32."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import MessagePassing

from sgquant_optuna.attachment.attention import quantized_class
from sgquant_optuna.attachment.caches import suspend_caches
from sgquant_optuna.attachment.class_switch import switch_class
from sgquant_optuna.attachment.graph_context import BoundNodes, GraphContext
from sgquant_optuna.attachment.hops import HOPS, install_hops, with_states
from sgquant_optuna.attachment.layer_arguments import (
    ROOT,
    change_argument,
    node_dim,
    position_of,
)
from sgquant_optuna.exceptions import GraphError, ModelError, PackingError, QuantizerBypassedError
from sgquant_optuna.graph.fingerprint import EDGE_COLUMNS, edges_fingerprint
from sgquant_optuna.graph.forward_pass import Forward, OfType, forward
from sgquant_optuna.graph.node_types import Graph, check_types_are, edge_parts, node_parts
from sgquant_optuna.packed.feature_use import ExactFeatures
from sgquant_optuna.packed.input_placeholder import InputPlaceholder
from sgquant_optuna.packed.message_passing import MessagePasser, Quantize
from sgquant_optuna.packed.model_file import ModelContents
from sgquant_optuna.packed.model_header import ModelSite
from sgquant_optuna.packed.site_packer import SitePacker
from sgquant_optuna.quantization.affine import fake_quantize
from sgquant_optuna.quantization.input_stores import RANGE_BYTES
from sgquant_optuna.quantization.layout import packed_nbytes
from sgquant_optuna.quantization.memory import Memory, honest_memory
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
        self.layout, self.bit_widths = contents.header.layout, contents.header.bit_widths
        self._rounding = contents.header.config.rounding
        self._types = types = contents.header.types
        self._forward = forward if types.answers is None else OfType(forward, types.answers)
        self._frees, self._fast = model is None, fast
        self.model = contents.plain_model(model)
        suspend_caches(self.model)
        ids = contents.tensors.get("bucket")
        self._part_nbytes = {"bucket ids": 0 if ids is None else ids.nbytes}
        self._use, exact = contents.header.features, contents.exact_features()
        self._exact = None if exact is None else ExactFeatures(exact)
        self._exact_nbytes = 0 if exact is None or self._use.exact_site else exact.nbytes
        self._used: dict[str, int] = {}
        self._counts: dict[str, int] = {}
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
        graph = GraphContext((), self.layout.num_buckets)
        if contents.bucket is not None:
            graph.nodes = {
                name: BoundNodes(degree_bucket=self._types.part(name, contents.bucket))
                for name in self._types.counts
            }
        served = Counter(
            name for of_layer in header.arguments.values() for name in of_layer.values()
        )
        packers = {
            site.name: SitePacker(
                site,
                contents,
                graph,
                self._used,
                self._exact,
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
                _check_argument(path, layer, argument)
                change = partial(
                    packers[name], node_dim=node_dim(layer), is_own=header.is_own(path, argument)
                )
                position = position_of(layer, argument)
                layer.register_forward_pre_hook(
                    partial(_change_input, name, change, argument, position), with_kwargs=True
                )
        for path, unused in self._types.unused.items():
            layer = self._layer(path)
            for argument in unused:
                _check_argument(path, layer, argument)
                position = position_of(layer, argument)
                layer.register_forward_pre_hook(
                    partial(_change_input, path, _zeros, argument, position), with_kwargs=True
                )
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

    def forward(self, graph: Graph | Tensor) -> Tensor:
        """Return the class scores of all nodes, ``[N, C]``; of the node type of the task alone.

        Args:
            graph:
                Graph that the model was packed for, or its ``edge_index`` alone. Its ``x`` is not
                read: the features are in the file.

        Raises:
            GraphError:
                If the edges are not those of the file.
            QuantizerBypassedError:
                If the forward pass does not reach a quantized layer.
        """
        data = Data(edge_index=graph) if isinstance(graph, Tensor) else copy.copy(graph)
        if self._types.is_hetero or isinstance(data, HeteroData):
            check_types_are(data, self._types.counts)
        self._check_edges(data)
        self._give_features(data)
        self._used.clear()
        try:
            with torch.no_grad():
                scores = self._forward(self.model, data)
        finally:
            for packer in self._packers.values():
                packer.end_pass()
        missed = {site.name for site in self._sites} - set(self._used)
        if missed:
            raise QuantizerBypassedError(f"the forward pass went round {', '.join(missed)}")
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
    def memory(self) -> Memory:
        """Memory of the bit widths by the honest accounting."""
        return honest_memory(self.layout, self.bit_widths)

    @property
    def stored_nbytes(self) -> dict[str, int]:
        """Bytes that the last forward pass stored, by part, ranges included.

        Attention counts as its packed codes, though only a block of it is held at one time.

        Raises:
            RuntimeError:
                Before the first forward pass.
        """
        if not self._used:
            raise RuntimeError("stored bytes: call the model with its graph first")
        return {**self._used, **self._part_nbytes}

    @property
    def exact_nbytes(self) -> int:
        """Bytes of the exact features, which no accounting of the layers counts.

        They are stored where the model uses the graph's features outside of its quantized layers,
        unless one of these stores them without loss.
        """
        return self._exact_nbytes

    def _give_features(self, data: Graph) -> None:
        """Put what stands for the features into the graph that the model is called with."""
        if self._types.is_hetero:
            taken = {self._types.of_site(site.name) for site in self._sites if site.is_input}
            for name, part in node_parts(data).items():
                width = self._types.columns.get(name)
                if width is not None:
                    shape = (self._types.counts[name], width)
                    # No score depends on the features of a type that no site takes.
                    is_held = name in taken
                    part.x = (
                        InputPlaceholder(shape) if is_held else torch.zeros(1, 1).expand(shape)
                    )
        elif self._use.shape is None:
            data.num_nodes = self.layout.num_nodes
        elif self._exact is not None:
            data.x = self._exact
        else:
            columns = [value for _, value in data if isinstance(value, Tensor)]
            constants = frozenset(map(id, (*columns, *self.model.buffers())))
            data.x = InputPlaceholder(self._use.shape, self._use.torch_dtype, constants)

    def _check_edges(self, data: Graph) -> None:
        parts = edge_parts(data).values()
        columns = [part.get(name) for part in parts for name in EDGE_COLUMNS]
        now = tuple((column, getattr(column, "_version", None)) for column in columns)
        if self._checked is not None and all(
            one[0] is other[0] and one[1] == other[1]
            for one, other in zip(self._checked, now, strict=True)
        ):
            return
        for part in parts:
            edges = part.get("edge_index", part.get("adj_t"))
            if not isinstance(edges, Tensor):
                raise GraphError("column edge_index: expected a tensor [2, E], got none")
            if edges.device.type != "cpu":
                raise GraphError(
                    f"column edge_index: a packed model runs on the CPU, got it on "
                    f"{edges.device}; call it with data.cpu()"
                )
        expected, found = self.fields["edges"], edges_fingerprint(data)
        if expected != found:
            raise GraphError(
                f"graph: expected the one that the model was packed for ({expected['edges']} "
                f"edges, hash {expected['hash']}), got {found['edges']} edges, hash "
                f"{found['hash']}"
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
            return partial(self._count_attention, name, width)
        scale, zero_point = contents.stored_ranges(site)

        def quantize(alpha: Tensor) -> Tensor:
            self._count_attention(name, width, alpha)
            return fake_quantize(alpha, scale, zero_point, width, rounding=self._rounding)

        return quantize

    def _count_attention(self, name: str, width: int, alpha: Tensor) -> Tensor:
        if name not in self._used:
            self._counts[name] = 0
        self._counts[name] += alpha.numel()
        count = self._counts[name]
        self._used[name] = (
            4 * count if width == FULL_PRECISION else packed_nbytes(1, count, width) + RANGE_BYTES
        )
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


def _change_input(
    name: str,
    change: Callable[[Tensor], Tensor],
    argument: str,
    position: int,
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return change_argument(name, args, kwargs, argument, position, change)


def _check_argument(path: str, layer: nn.Module, argument: str) -> None:
    """Refuse a name that no call of a layer gives, so that its site would not be reached."""
    parameters = inspect.signature(layer.forward).parameters
    takes_any = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
    if argument.partition("[")[0] not in parameters and not takes_any:
        raise PackingError(
            f"arguments of {path}: expected one of {', '.join(parameters)}, got {argument!r}"
        )
