"""A model that runs on packed features: codes at rest, a block of float32 at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from sgquant_optuna.attachment.attention import quantized_class, switch_class
from sgquant_optuna.attachment.layer_inputs import map_input
from sgquant_optuna.exceptions import (
    GraphError,
    ModelError,
    QuantizerBypassedError,
)
from sgquant_optuna.graph.fingerprint import edges_fingerprint
from sgquant_optuna.graph.forward_pass import Forward, forward
from sgquant_optuna.packed.input_features import PackedInput
from sgquant_optuna.packed.message_passing import MessagePasser
from sgquant_optuna.packed.model_checks import check_header, site_ranges
from sgquant_optuna.packed.model_contents import stored_lines
from sgquant_optuna.packed.model_reading import (
    degree_buckets,
    packed_input,
    plain_model,
    spread_ranges,
)
from sgquant_optuna.packed.packed_features import PackedFeatures
from sgquant_optuna.packed.packed_tensor import InputPlaceholder, PackedTensor
from sgquant_optuna.quantization.affine import fake_quantize
from sgquant_optuna.quantization.input_stores import RANGE_BYTES
from sgquant_optuna.quantization.layout import packed_nbytes
from sgquant_optuna.quantization.memory import FeatureLayout, Memory, honest_memory
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.sites import FULL_PRECISION, BitWidths


class PackedModel(nn.Module):
    """Runs a quantized model on features that are stored packed.

    The scores are those of the fake-quantized model: sums run in the same order, so that hidden
    features get the same codes.

    What is in memory: the graph's features in the store that the accounting counts (plus 4 bytes a
    node and 8 a node of sparse stores, which find their rows), and, while a layer runs, its input
    packed, its output in float32, and blocks of about 1000 rows or 16000 edges. ``linear``,
    products with the adjacency and attention of ``GATConv``, ``GATv2Conv`` and ``AGNNConv`` run
    block by block, so attention ``[E, H]`` never exists; other convolutions get their input
    unpacked, and attention of other convolutions (``TransformerConv``, registered ones) is
    quantized but whole. Between two layers features are float32, as the model's own ``forward``
    holds them; a model of the paper gives them back as soon as they are packed, while other
    models keep theirs until the next layer is done. Inference only, on the CPU: there are no
    gradients.

    Args:
        fields:
            What :func:`~sgquant_optuna.packed.model_contents.pack_contents` returned.
        tensors:
            Its tensors.
        model:
            An instance of the same architecture, whose weights are replaced in a copy; may be
            left out for models of the paper.
        forward:
            Calls the model with the graph.

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
    ) -> None:
        super().__init__()
        check_header(fields)
        self.fields = dict(fields)
        self.layout = FeatureLayout.from_dict(fields["layout"])
        self.bit_widths = BitWidths.from_dict(fields["bit_widths"])
        self._forward, self._frees = forward, model is None
        self.model = plain_model(fields, tensors, model)
        self._bucket = degree_buckets(tensors, self.layout)
        self._part_nbytes = {"bucket ids": tensors["bucket"].nbytes if "bucket" in tensors else 0}
        self._used: dict[str, int] = {}
        self._checked: tuple[Any, ...] | None = None
        config = QuantizerConfig(**fields["quantizer"])
        attention: dict[str, Callable[[Tensor], Tensor] | None] = {}
        for site in fields["sites"]:
            name, component = str(site["name"]).rsplit("/", 1)
            path = "" if name == "model" and not hasattr(self.model, "model") else name
            if component == "attention":
                attention[path] = self._attention(site, tensors, config)
            else:
                self._hook(path, site, tensors, config)
        passer = MessagePasser(self.model, attention)
        for path in passer.fallback:
            conv = self.model.get_submodule(path)
            to = quantized_class(conv)
            if to is None:
                raise ModelError(f"{path}: no class is registered that quantizes its attention")
            conv.add_module("attention_quantizer", _AttentionQuantizer(attention[path]))
            switch_class(conv, to)
        self.eval()

    def forward(self, graph: Data | Tensor) -> Tensor:
        """Return the class scores of all nodes, ``[N, C]``.

        Args:
            graph:
                The graph that the model was packed for, or its ``edge_index`` alone. Its ``x`` is
                not looked at: the features are in the file.

        Raises:
            GraphError:
                If the edges are not those that it was packed for.
            QuantizerBypassedError:
                If the forward pass does not reach a quantized layer.
        """
        data = Data(edge_index=graph) if isinstance(graph, Tensor) else copy.copy(graph)
        data.x = InputPlaceholder((self.layout.num_nodes, int(self.fields["num_features"])))
        self._check_edges(data)
        self._used = {}
        with torch.no_grad():
            scores = self._forward(self.model, data)
        missed = {str(site["name"]) for site in self.fields["sites"]} - set(self._used)
        if missed:
            raise QuantizerBypassedError(f"the forward pass went round {', '.join(missed)}")
        return scores

    def train(self, mode: bool = True) -> PackedModel:
        """Stay in evaluation mode: packed features take no gradient."""
        super().train(False)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedModel:
        """Refuse what ``to``, ``cuda`` or ``half`` would do to the weights alone."""
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
        """What the honest accounting says of the bit widths."""
        return honest_memory(self.layout, self.bit_widths)

    @property
    def stored_nbytes(self) -> dict[str, int]:
        """Bytes that the last forward pass stored, by part, ranges included.

        Attention counts as its packed codes, though no more than a block of them exists.

        Raises:
            RuntimeError:
                Before the first forward pass.
        """
        if not self._used:
            raise RuntimeError("stored bytes: call the model with its graph first")
        return {**self._used, **self._part_nbytes}

    def _check_edges(self, data: Data) -> None:
        columns = [data.get(name) for name in ("edge_index", "edge_attr", "edge_weight")]
        now = tuple((column, getattr(column, "_version", None)) for column in columns)
        if self._checked is not None and all(
            one[0] is other[0] and one[1] == other[1]
            for one, other in zip(self._checked, now, strict=True)
        ):
            return
        if not isinstance(data.edge_index, Tensor):
            raise GraphError("column edge_index: expected a tensor [2, E], got none")
        if data.edge_index.device.type != "cpu":
            raise GraphError(
                f"column edge_index: a packed model runs on the CPU, got it on "
                f"{data.edge_index.device}; call it with data.cpu()"
            )
        expected, found = self.fields["edges"], edges_fingerprint(data)
        if expected != found:
            raise GraphError(
                f"graph: expected the one that the model was packed for ({expected['edges']} "
                f"edges, hash {expected['hash']}), got {found['edges']} edges, hash "
                f"{found['hash']}"
            )
        self._checked = now

    def _hook(
        self,
        path: str,
        site: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        config: QuantizerConfig,
    ) -> None:
        name = str(site["name"])
        bucket = self._bucket if len(site["bit_widths"]) > 1 else None
        change: Callable[[Tensor], Tensor]
        if site["input"] is not None:
            stored = PackedTensor(packed_input(site, tensors, bucket, self.layout))
            change = partial(self._take_input, name, stored)
        elif all(width == FULL_PRECISION for width in site["bit_widths"]):
            change = partial(self._leave, name)
        else:
            scale, zero_point = spread_ranges(site, tensors, bucket, self.layout)
            change = partial(self._pack, name, site, bucket, scale, zero_point, config)
        layer = self.model.get_submodule(path)
        layer.register_forward_pre_hook(partial(_change_input, name, change), with_kwargs=True)

    def _take_input(self, name: str, stored: PackedTensor, x: Tensor) -> Tensor:
        if not isinstance(x, InputPlaceholder):
            raise ModelError(f"{name}: expected the graph's features, got {type(x).__name__}")
        assert isinstance(stored.packed, PackedInput)
        self._used[name] = stored.packed.nbytes
        return stored

    def _leave(self, name: str, x: Tensor) -> Tensor:
        self._used[name] = x.nbytes
        return x

    def _pack(
        self,
        name: str,
        site: Mapping[str, Any],
        bucket: Tensor | None,
        scale: Tensor,
        zero_point: Tensor,
        config: QuantizerConfig,
        x: Tensor,
    ) -> Tensor:
        packed = PackedFeatures.from_dense(
            x,
            bucket,
            site["bit_widths"],
            scale,
            zero_point,
            rounding=config.rounding,
            ranges_by_row=config.axis == "row",
        )
        lines = stored_lines(site["bit_widths"], config.axis, bucket)
        self._used[name] = packed.data.nbytes + RANGE_BYTES * scale[lines].numel()
        if self._frees and x._base is None:
            x.data = x.new_empty(0)  # the models of the paper do not read it again
        return PackedTensor(packed)

    def _attention(
        self, site: Mapping[str, Any], tensors: Mapping[str, Tensor], config: QuantizerConfig
    ) -> Callable[[Tensor], Tensor] | None:
        name, (width,) = str(site["name"]), site["bit_widths"]
        self._counts: dict[str, int] = {}
        if width == FULL_PRECISION:
            return partial(self._count_attention, name, width)
        scale, zero_point = site_ranges(site, tensors, None, self.layout)

        def quantize(alpha: Tensor) -> Tensor:
            self._count_attention(name, width, alpha)
            return fake_quantize(alpha, scale, zero_point, width, rounding=config.rounding)

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
    """Stands where a registered class looks for the quantizer of its attention."""

    def __init__(self, quantize: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self._quantize = quantize

    def forward(self, alpha: Tensor) -> Tensor:
        return alpha if self._quantize is None else self._quantize(alpha)


def _change_input(
    name: str,
    change: Callable[[Tensor], Tensor],
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return map_input(name, args, kwargs, change)
