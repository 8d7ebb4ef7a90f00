"""What a packed model does with the features of a site: it holds codes, and counts bytes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sgquant_optuna.attachment.graph_context import version
from sgquant_optuna.exceptions import ModelError, PackingError
from sgquant_optuna.packed.graph_features import GraphFeatures, PassRecord
from sgquant_optuna.packed.input_placeholder import InputPlaceholder, RawFeaturesError
from sgquant_optuna.packed.model_file import ModelContents
from sgquant_optuna.packed.model_header import ModelSite
from sgquant_optuna.packed.packed_features import PackedFeatures
from sgquant_optuna.packed.packed_tensor import PackedTensor


@dataclass(eq=False)
class CurrentPass:
    """The forward pass that runs, for all packers of a model.

    Args:
        graph:
            Features of the graph that the model is called with.
        record:
            Bytes and rows that the pass stores.
        x:
            The graph's features as the user gave them, where the model is called with these.
        wanted:
            Numbers of the calls, by site, whose features are made of ``x`` alone and to be kept.
    """

    graph: GraphFeatures = field(init=False)
    record: PassRecord = field(init=False)
    x: Tensor | None = None
    wanted: Collection[tuple[str, int]] = ()


class SitePacker(nn.Module):
    """Packs the features of one site whenever a layer takes them.

    It stands where :class:`~sgquant_optuna.attachment.site_quantizer.SiteQuantizer` stands in the
    quantized model.

    Args:
        site:
            Site of the model, other than attention.
        contents:
            Contents of the packed model.
        now:
            Graph of the current forward pass, and what the pass stores.
        frees:
            Whether float32 features are freed as soon as they are packed.
        fast:
            Whether to pack by the compiled kernel; by default where it is installed.
        is_shared:
            Whether several arguments take the features of one call, so that they are kept.

    Raises:
        PackingError:
            If the tensors of the site do not fit.
    """

    def __init__(
        self,
        site: ModelSite,
        contents: ModelContents,
        now: CurrentPass,
        *,
        frees: bool,
        fast: bool | None,
        is_shared: bool,
    ) -> None:
        super().__init__()
        self.name, self._site = site.name, site
        self._node_type = contents.header.types.of_site(site.name)
        self._rounding = contents.header.config.rounding
        self._now, self._frees, self._fast, self._is_shared = now, frees, fast, is_shared
        self._last: tuple[Tensor, int, Tensor] | None = None
        self._num_calls = 0
        if not site.is_input:
            self._ranges = contents.ranges(site)

    def forward(self, x: Tensor, node_dim: int = 0, *, is_own: bool = True) -> Tensor:
        """Return the features of one call, packed.

        Args:
            x:
                Features, ``[N, F]`` or with further leading dimensions, which are flattened.
            node_dim:
                Dimension of ``x`` that counts the nodes.
            is_own:
                Whether the call stores its features; otherwise they are those of another call,
                as the first features that all layers of GCNII take.

        Raises:
            ModelError:
                If the graph's own features are expected and others come.
            PackingError:
                If the number of columns is not that of the site.
        """
        if self._site.is_input:
            return self._take_input(x)
        if x.shape[-1] != self._site.num_columns:
            raise PackingError(
                f"{self.name}: expected {self._site.num_columns} columns, got {x.shape[-1]}"
            )
        call, last = self._num_calls, self._last
        self._num_calls += 1
        if not is_own and last is not None and last[0] is x and last[1] == version(x):
            return last[2]
        out = self._packed(x, call, node_dim)
        is_given = x is self._now.x  # the user's own features
        if self._frees and type(x) is Tensor and not is_given and out is not x and x._base is None:
            x.data = x.new_empty(0)  # the models of the paper do not read it again
        if self._is_shared:
            self._last = (x, version(x), out)
        return out

    def end_pass(self) -> None:
        """Free the features of the last call, and count calls from 0 again."""
        self._last, self._num_calls = None, 0

    def _take_input(self, x: Tensor) -> Tensor:
        graph = self._now.graph
        is_input = isinstance(x, InputPlaceholder) and x.is_input
        if graph.exact is not None and isinstance(x, PackedTensor):
            is_input = x.packed is graph.exact.packed
        if not is_input and x is not self._now.x:
            raise ModelError(f"{self.name}: expected the graph's features, got {type(x).__name__}")
        self._now.record.add_input(self.name, graph.inputs[self.name])
        return graph.tensors[self.name]

    def _packed(self, x: Tensor, call: int, node_dim: int) -> Tensor:
        """Return the features of a call in the form that is held, and count its bytes."""
        constants = self._now.graph.constants
        if isinstance(x, InputPlaceholder):
            if (self.name, call) not in constants:
                raise RawFeaturesError(self.name, self.name, call)
            packed = constants[self.name, call]
            self._count(packed)
            return PackedTensor(packed)
        if isinstance(x, PackedTensor):
            x = x.dense()
        if self._site.is_identity and (self.name, call) not in self._now.wanted:
            self._count_full(x, node_dim)
            return x
        return self._pack(x, call, node_dim)

    def _count(self, packed: PackedFeatures) -> None:
        counts = [len(packed.packed_rows(number)) for number in range(len(packed.bit_widths))]
        self._now.record.add(self.name, counts, packed.data.nbytes)

    def _count_full(self, x: Tensor, node_dim: int) -> None:
        """Count rows that stay float32."""
        counts = [x.shape[:-1].numel()]
        if len(self._site.bit_widths) > 1:
            bucket = self._buckets_of(x, node_dim)
            assert bucket is not None
            counts = torch.bincount(bucket.long(), minlength=len(self._site.bit_widths)).tolist()
        self._now.record.add(self.name, counts, x.nbytes)

    def _buckets_of(self, x: Tensor, node_dim: int) -> Tensor | None:
        nodes = self._now.graph.context.of_type(self._node_type)
        return nodes.buckets_of(x, node_dim)

    def _pack(self, x: Tensor, call: int, node_dim: int) -> Tensor:
        if x.dtype != torch.float32:
            raise ModelError(
                f"{self.name}: expected float32 features, got "
                f"{str(x.dtype).removeprefix('torch.')}; let the model cast them by .float() "
                f"before the layer"
            )
        is_by_bucket = len(self._site.bit_widths) > 1
        packed = PackedFeatures.from_dense(
            x if x.dim() == 2 else x.reshape(-1, x.shape[-1]),
            self._buckets_of(x, node_dim) if is_by_bucket else None,
            self._site.bit_widths,
            *self._ranges,
            rounding=self._rounding,
            ranges_by_row=self._site.axis == "row",
            fast=self._fast,
        )
        if (self.name, call) in self._now.wanted:
            self._now.graph.constants[self.name, call] = packed
        self._count(packed)
        out = PackedTensor(packed)
        return out if x.dim() == 2 else out.dense().view(x.shape)
