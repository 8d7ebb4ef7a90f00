"""What a packed model does with the features of a site: it holds codes, and counts bytes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sgquant_optuna.attachment.graph_context import GraphContext, version
from sgquant_optuna.exceptions import ModelError, PackingError
from sgquant_optuna.packed.feature_use import ExactFeatures
from sgquant_optuna.packed.input_placeholder import InputPlaceholder, RawFeaturesError
from sgquant_optuna.packed.model_file import ModelContents
from sgquant_optuna.packed.model_header import ModelSite
from sgquant_optuna.packed.packed_features import PackedFeatures
from sgquant_optuna.packed.packed_tensor import PackedTensor
from sgquant_optuna.quantization.input_stores import RANGE_BYTES


class SitePacker(nn.Module):
    """Packs the features of one site whenever a layer takes them.

    It stands where :class:`~sgquant_optuna.attachment.site_quantizer.SiteQuantizer` stands in the
    quantized model.

    Args:
        site:
            Site of the model, other than attention.
        contents:
            Contents of the packed model.
        graph:
            Degree buckets of the nodes.
        used:
            Bytes that the current forward pass stored, by site; the bytes of each call are added.
        exact:
            The graph's own features, where the model is called with them.
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
        graph: GraphContext,
        used: dict[str, int],
        exact: ExactFeatures | None,
        *,
        frees: bool,
        fast: bool | None,
        is_shared: bool,
    ) -> None:
        super().__init__()
        self.name, self._site = site.name, site
        self._node_type = contents.header.types.of_site(site.name)
        self._rounding = contents.header.config.rounding
        self._graph, self._used, self._exact = graph, used, exact
        self._frees, self._fast, self._is_shared = frees, fast, is_shared
        self._last: tuple[Tensor, int, Tensor] | None = None
        self._num_calls = self._range_nbytes = 0
        if site.is_input:
            stored = contents.input_of(site)
            self._input, self._input_nbytes = PackedTensor(stored), stored.nbytes
            return
        calls = contents.header.features.constant.get(site.name, ())
        self._constants = {call: contents.constant_of(site, call) for call in calls}
        if not site.is_identity:
            self._ranges = contents.ranges(site)
            self._range_nbytes = RANGE_BYTES * contents.stored_ranges(site)[0].numel()

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
        out, nbytes = self._packed(x, call, node_dim)
        # Ranges are stored once for all calls.
        self._used[self.name] = self._used.get(self.name, self._range_nbytes) + nbytes
        if self._frees and type(x) is Tensor and out is not x and x._base is None:
            x.data = x.new_empty(0)  # the models of the paper do not read it again
        if self._is_shared:
            self._last = (x, version(x), out)
        return out

    def end_pass(self) -> None:
        """Free the features of the last call, and count calls from 0 again."""
        self._last, self._num_calls = None, 0

    def _take_input(self, x: Tensor) -> Tensor:
        is_input = isinstance(x, InputPlaceholder) and x.is_input
        if self._exact is not None and isinstance(x, PackedTensor):
            is_input = x.packed is self._exact.packed
        if not is_input:
            raise ModelError(f"{self.name}: expected the graph's features, got {type(x).__name__}")
        self._used[self.name] = self._input_nbytes
        return self._input

    def _packed(self, x: Tensor, call: int, node_dim: int) -> tuple[Tensor, int]:
        """Return the features of a call in the form that is held, and its bytes."""
        if isinstance(x, InputPlaceholder):
            if call not in self._constants:
                raise RawFeaturesError(self.name, self.name, call)
            packed = self._constants[call]
            return PackedTensor(packed), packed.data.nbytes
        if isinstance(x, PackedTensor):
            x = x.dense()
        return (x, x.nbytes) if self._site.is_identity else self._pack(x, node_dim)

    def _pack(self, x: Tensor, node_dim: int) -> tuple[Tensor, int]:
        if x.dtype != torch.float32:
            raise ModelError(
                f"{self.name}: expected float32 features, got "
                f"{str(x.dtype).removeprefix('torch.')}; let the model cast them by .float() "
                f"before the layer"
            )
        is_by_bucket = len(self._site.bit_widths) > 1
        packed = PackedFeatures.from_dense(
            x if x.dim() == 2 else x.reshape(-1, x.shape[-1]),
            self._graph.of_type(self._node_type).buckets_of(x, node_dim) if is_by_bucket else None,
            self._site.bit_widths,
            *self._ranges,
            rounding=self._rounding,
            ranges_by_row=self._site.axis == "row",
            fast=self._fast,
        )
        out = PackedTensor(packed)
        return (out if x.dim() == 2 else out.dense().view(x.shape)), packed.data.nbytes
