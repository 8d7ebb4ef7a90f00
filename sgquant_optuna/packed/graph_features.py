"""What a packed model holds of one graph: degree buckets, and its features as layers take them.

A file has that of the graph of its calibration; :mod:`.graph_packer` makes it of any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sgquant_optuna.attachment.graph_context import BoundNodes, GraphContext
from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.node_types import ONLY_TYPE
from sgquant_optuna.packed.feature_use import ExactFeatures
from sgquant_optuna.packed.input_features import InputPart
from sgquant_optuna.packed.model_header import ModelSite
from sgquant_optuna.packed.packed_features import PackedFeatures
from sgquant_optuna.packed.packed_input import PackedInput
from sgquant_optuna.packed.packed_tensor import PackedTensor
from sgquant_optuna.packed.packed_types import PackedTypes
from sgquant_optuna.quantization.input_stores import RANGE_BYTES, InputContent
from sgquant_optuna.quantization.layout import bits_for, integers_nbytes, packed_nbytes
from sgquant_optuna.quantization.memory import FeatureLayout, SiteSize
from sgquant_optuna.quantization.quantizer_config import Rounding
from sgquant_optuna.quantization.sites import FULL_PRECISION, Site


@dataclass(eq=False)
class GraphFeatures:
    """Degree buckets and packed features of one graph.

    Args:
        edges:
            Number and hash of the edges.
        num_nodes:
            Number of nodes N.
        shape:
            Shape of ``x``, ``None`` if the model needs none.
        bucket:
            Degree bucket of each node, ``[N]`` uint8, or ``None`` where there is one.
        num_buckets:
            Number of degree buckets B.
        inputs:
            The graph's features by the name of the site that takes them.
        contents:
            Contents of the rows of each degree bucket of these sites.
        constants:
            Features of other layers that are computed of ``x`` alone, by site and number of the
            call.
        exact:
            Exact features, where the model uses them outside of its quantized layers.
        has_own_exact:
            Whether these are stored beside those of the layers.
        types:
            Node types of the graph; ``None`` for one.
    """

    edges: Mapping[str, Any]
    num_nodes: int
    shape: tuple[int, ...] | None
    bucket: Tensor | None
    num_buckets: int
    inputs: Mapping[str, PackedInput]
    contents: Mapping[str, Mapping[int, InputContent]]
    constants: dict[tuple[str, int], PackedFeatures] = field(default_factory=dict)
    exact: ExactFeatures | None = None
    has_own_exact: bool = False
    types: PackedTypes | None = None

    def __post_init__(self) -> None:
        """Wrap what is packed as the tensors that layers take."""
        self.tensors = {name: PackedTensor(packed) for name, packed in self.inputs.items()}
        buckets = {ONLY_TYPE: self.bucket}
        if self.types is not None and self.bucket is not None:
            buckets = {name: self.types.part(name, self.bucket) for name in self.types.counts}
        nodes = {name: BoundNodes(degree_bucket=bucket) for name, bucket in buckets.items()}
        self.context = GraphContext((), self.num_buckets, nodes=nodes)

    @property
    def exact_nbytes(self) -> int:
        """Bytes of the exact features that no layer stores."""
        if self.exact is None or not self.has_own_exact:
            return 0
        packed = self.exact.packed
        assert isinstance(packed, PackedInput)
        return packed.nbytes

    @property
    def bucket_nbytes(self) -> int:
        """Bytes of the degree buckets of all nodes."""
        return integers_nbytes(self.num_nodes, bits_for(self.num_buckets - 1))


class PassRecord:
    """What one forward pass stores: bytes of each site, and rows of each of its degree buckets.

    Args:
        sites:
            Sites of the model by name.
    """

    def __init__(self, sites: Mapping[str, ModelSite]) -> None:
        self._sites = sites
        self.nbytes: dict[str, int] = {}
        self._rows: dict[str, list[int]] = {}
        self._values: dict[str, int] = {}  # of attention

    def add(self, name: str, counts: Sequence[int], nbytes: int) -> None:
        """Add one call of a layer.

        Args:
            name:
                Name of the site.
            counts:
                Number of rows of each degree bucket.
            nbytes:
                Bytes of the rows.
        """
        site = self._sites[name]
        known = self._rows.setdefault(name, [0] * len(site.bit_widths))
        for number, (count, width) in enumerate(zip(counts, site.bit_widths, strict=True)):
            if count and not known[number] and width != FULL_PRECISION:
                nbytes += RANGE_BYTES * _num_ranges(site, count)  # stored once for all calls
            known[number] += count
        self.nbytes[name] = self.nbytes.get(name, 0) + nbytes

    def add_input(self, name: str, packed: PackedInput) -> None:
        """Note the graph's own features, which are stored once, with their ranges."""
        self._rows[name] = [0 if part is None else part.shape[0] for part in packed.parts]
        self.nbytes[name] = packed.nbytes

    def add_attention(self, name: str, num_values: int) -> None:
        """Add the attention of some edges, which counts as one run of codes."""
        (width,) = self._sites[name].bit_widths
        values = self._values[name] = self._values.get(name, 0) + num_values
        if width == FULL_PRECISION or not values:
            self.nbytes[name] = 4 * values
        else:
            self.nbytes[name] = packed_nbytes(1, values, width) + RANGE_BYTES

    def layout(self, graph: GraphFeatures) -> FeatureLayout:
        """Return the size of each site on the graph of the pass."""
        sizes = {}
        for name, site in self._sites.items():
            contents = graph.contents.get(name, {})
            of_edges = [self._values.get(name, 0) // max(1, site.num_columns)]
            for number, rows in enumerate(self._rows.get(name, of_edges)):
                if not rows:
                    continue
                bucket = number if len(site.bit_widths) > 1 else None
                sizes[Site(site.layer, site.component, bucket)] = SiteSize(
                    rows, site.num_columns, _num_ranges(site, rows), contents.get(number)
                )
        return FeatureLayout(sizes, graph.num_nodes, graph.num_buckets)


def _num_ranges(site: ModelSite, rows: int) -> int:
    """Return the number of ranges of a degree bucket; with rows of their own, those of a call."""
    return {"row": rows, "column": site.num_columns}.get(site.axis, 1)


def input_part(
    x: Tensor,
    bucket: Tensor | None,
    number: int,
    site: ModelSite,
    ranges: tuple[Tensor, Tensor] | None,
    rounding: Rounding,
) -> InputPart:
    """Pack the rows of one degree bucket of the graph's features.

    Args:
        x:
            Features, ``[N, F]`` float32.
        bucket:
            Degree bucket of each node, ``[N]``, or ``None`` for one bucket.
        number:
            The degree bucket.
        site:
            Site that takes them, with its sizes on this graph.
        ranges:
            Scale and zero point, ``[B, 1]``, ``[B, F]`` or ``[N, 1]``; not used at 32 bits.
        rounding:
            ``"nearest"`` or the paper's ``"floor"``.

    Raises:
        GraphError:
            If they take other bytes than the sizes say.
    """
    rows = x if bucket is None else x[bucket == number]
    width = site.bit_widths[number]
    scale = zero_point = x.new_ones(1, 1)
    if width != FULL_PRECISION:
        assert ranges is not None
        line: Tensor | slice = slice(number, number + 1)
        if site.axis == "row":
            line = slice(None) if bucket is None else bucket == number
        scale, zero_point = ranges[0][line], ranges[1][line]
    store, expected = site.store(number)
    part = InputPart.from_dense(rows, store, width, scale, zero_point, rounding)
    if (part.nbytes, part.count_bits) != (expected, site.count_bits(number)):
        raise GraphError(
            f"{site.name}, degree bucket {number}: the accounting says {expected} bytes, the "
            f"graph takes {part.nbytes}; give the graph and the layout of one calibration"
        )
    return part
