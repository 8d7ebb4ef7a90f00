"""How a model uses the graph's own features beyond the layers that take them packed.

A header has the field ``features`` where they are more, or less, than the float32 input ``[N, F]``
of some quantized layers:

============ =================================================================================
``shape``    shape of ``x``, or null if the model needs none
``dtype``    type of ``x``
``constant`` calls of layers that take what is computed of ``x`` alone (normalised, cast), by
             site: their codes are stored as ``constant.SITE.CALL``
``exact``    null, or the exact ``x`` that is used outside of quantized layers: ``{"site": ...}``
             that stores it without loss, or ``{"store": ..., "count_bits": ...}`` of ``exact.*``
============ =================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from sgquant_optuna.attachment.input_contents import exact_content
from sgquant_optuna.exceptions import ModelError, PackingError
from sgquant_optuna.packed.checks import check_count
from sgquant_optuna.packed.input_features import InputPart
from sgquant_optuna.packed.packed_input import PackedInput
from sgquant_optuna.packed.packed_tensor import PackedTensor
from sgquant_optuna.quantization.input_stores import input_stores
from sgquant_optuna.quantization.memory import FeatureLayout, SiteSize
from sgquant_optuna.quantization.sites import FULL_PRECISION, Site

EXACT = "exact."
_MOST_DIMS = 4
_MOST_CALLS = 1 << 16
_DTYPES = (
    *("float32", "float64", "float16", "bfloat16"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)


@dataclass(frozen=True)
class FeatureUse:
    """The field ``features`` of a header.

    Args:
        shape:
            Shape of ``x``; ``None`` if the model needs none.
        dtype:
            Name of its type.
        constant:
            Numbers of the calls of each site whose codes are stored.
        exact:
            Place of the exact features, if they are used outside of quantized layers.
    """

    shape: tuple[int, ...] | None
    dtype: str = "float32"
    constant: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    exact: Mapping[str, Any] | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """Type of ``x``."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def exact_site(self) -> str | None:
        """Name of the site that stores the exact features, if one does."""
        return None if self.exact is None else self.exact.get("site")

    def to_dict(self) -> dict[str, Any]:
        """Return the field for JSON."""
        use = asdict(self)
        use["shape"] = None if self.shape is None else list(self.shape)
        use["constant"] = {name: list(calls) for name, calls in self.constant.items()}
        return use

    @classmethod
    def parse(cls, value: object, num_nodes: int) -> FeatureUse:
        """Read the field and check it by itself.

        Raises:
            PackingError:
                If a part is missing or of another type.
        """
        if not isinstance(value, dict):
            raise PackingError(f"features: expected an object, got {value!r}")
        shape, dtype = value.get("shape"), value.get("dtype")
        if shape is not None:
            if not isinstance(shape, list) or not 1 <= len(shape) <= _MOST_DIMS:
                raise PackingError(f"features: expected null or a shape, got {shape!r}")
            shape = tuple(check_count(size, "shape of the features") for size in shape)
            if shape[0] != num_nodes:
                raise PackingError(f"features: expected {num_nodes} rows, got {shape[0]}")
        if dtype not in _DTYPES:
            raise PackingError(f"features: expected a type of {_DTYPES}, got {dtype!r}")
        constant = value.get("constant")
        if not isinstance(constant, dict) or not all(map(_are_calls, constant.values())):
            raise PackingError(f"features: expected numbers of calls, got {constant!r}")
        exact = value.get("exact")
        if exact is not None:
            if not _is_place(exact):
                raise PackingError(f"features: expected a site or a store, got {exact!r}")
            if shape is None or len(shape) != 2 or dtype != "float32":
                raise PackingError(
                    f"features: expected exact ones as float32 [{num_nodes}, F], got {dtype} "
                    f"{shape!r}"
                )
        return cls(shape, dtype, {name: tuple(calls) for name, calls in constant.items()}, exact)

    def exact_input(self, tensors: Mapping[str, Tensor], *, sparse: bool) -> PackedInput:
        """Return the exact features from the tensors of a file, without ``exact.``.

        Raises:
            PackingError:
                If they do not fit.
        """
        assert self.exact is not None and self.shape is not None
        shape = self.shape[0], self.shape[1]
        store, bits = self.exact["store"], self.exact["count_bits"]
        part = InputPart(store, FULL_PRECISION, shape, tensors, bits)
        return PackedInput([part], None, sparse=sparse)


def feature_use(
    x: Tensor | None,
    layout: FeatureLayout,
    bit_widths: Mapping[str, int],
    constants: Collection[tuple[str, int]],
    *,
    exact: bool,
) -> tuple[FeatureUse | None, dict[str, Tensor]]:
    """Describe how a model uses the graph's features, and store them exactly where it has to.

    Args:
        x:
            Features of the graph, if it has any.
        layout:
            Size of each site.
        bit_widths:
            Bit width of each site, by name.
        constants:
            Site and number of each call of a layer whose input is stored.
        exact:
            Whether the model uses the features outside of its quantized layers.

    Returns:
        The field, ``None`` for the usual use, and the tensors ``exact.*``.

    Raises:
        ModelError:
            If features that are used exactly are not float32 in two dimensions.
    """
    inputs: dict[str, list[Site]] = {}
    for site, size in layout.sizes.items():
        if size.content is not None:
            inputs.setdefault(str(Site(site.layer, site.component)), []).append(site)
    if inputs and not constants and not exact:
        return None, {}
    if x is None:
        return FeatureUse(None), {}
    calls: dict[str, tuple[int, ...]] = {}
    for name, call in sorted(constants):
        calls[name] = (*calls.get(name, ()), call)
    place: dict[str, Any] | None = None
    tensors: dict[str, Tensor] = {}
    if exact:
        lossless = [
            name
            for name, sites in inputs.items()
            if all(_is_exact(layout.sizes[site], bit_widths[str(site)]) for site in sites)
        ]
        if lossless:
            place = {"site": lossless[0]}
        else:
            part = exact_part(x)
            place = {"store": part.store, "count_bits": part.count_bits}
            tensors = {f"{EXACT}{name}": tensor for name, tensor in part.tensors.items()}
    dtype = str(x.dtype).removeprefix("torch.")
    return FeatureUse(tuple(x.shape), dtype, calls, place), tensors


def _is_exact(size: SiteSize, bit_width: int) -> bool:
    assert size.content is not None
    return bit_width in (*size.content.lossless, FULL_PRECISION)


def _are_calls(value: object) -> bool:
    return isinstance(value, list) and all(
        type(call) is int and 0 <= call < _MOST_CALLS for call in value
    )


def _is_place(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    if set(value) == {"site"}:
        return isinstance(value["site"], str)
    return set(value) == {"store", "count_bits"}


def exact_part(x: Tensor) -> InputPart:
    """Pack features exactly, ``[N, F]`` float32, in the store of the fewest bytes."""
    if x.dim() != 2 or x.dtype != torch.float32:
        raise ModelError(
            f"x: expected float32 [N, F] where the model uses it outside its quantized layers, "
            f"got {str(x.dtype).removeprefix('torch.')} {list(x.shape)}; give the graph float32 "
            f"features, data.x = data.x.float()"
        )
    sizes = input_stores(x.shape[0], x.shape[1], FULL_PRECISION, 1, exact_content(x))
    store = min(sizes, key=lambda name: sizes[name])
    one = x.new_ones(1, 1)
    return InputPart.from_dense(x, store, FULL_PRECISION, one, one, "nearest")


class ExactFeatures(PackedTensor):
    """The graph's features where a model uses them outside of its quantized layers.

    Each such use unpacks all of them. A clone is an ordinary tensor, which may be changed.
    """

    @classmethod
    def _compute(
        cls, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Unpack for a clone; answer anything else as packed features do."""
        if func in (Tensor.clone, torch.clone):
            return args[0].dense()
        return super()._compute(func, args, kwargs)
