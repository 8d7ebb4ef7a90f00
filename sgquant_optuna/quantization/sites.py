"""Sites and their bit widths: the assignment that is searched, stored and exported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Component = Literal["embedding", "attention"]
COMPONENTS: tuple[Component, ...] = get_args(Component)

PACKED_WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16)
FULL_PRECISION = 32
"""Bit width of values that stay float32."""
SUPPORTED_WIDTHS = (*PACKED_WIDTHS, FULL_PRECISION)

# One name for each bucket: by "bucket01", two widths would become one.
_BUCKET = re.compile("bucket(0|[1-9][0-9]{0,8})")


def check_bit_width(bit_width: object, *, where: str = "bit width") -> int:
    """Return a bit width if it is supported.

    Args:
        bit_width:
            Value to check.
        where:
            Subject of the error message.

    Raises:
        ValueError:
            If it is not one of 1-8, 16 and 32.
    """
    if type(bit_width) is not int or bit_width not in SUPPORTED_WIDTHS:
        raise ValueError(f"{where}: expected one of {SUPPORTED_WIDTHS}, got {bit_width!r:.60}")
    return bit_width


@dataclass(frozen=True, order=True)
class Site:
    """A quantization point of a model: the values that share one bit width.

    Args:
        layer:
            Path of the layer in the model, as in ``model.get_submodule(layer)``, and for other
            features than its main ones a further part: the argument (``conv1.x_0``), or ``hops``
            for hidden features between the hops of one convolution (``conv1.hops``).
        component:
            ``"embedding"`` (the layer's input features) or ``"attention"`` (its coefficients).
        bucket:
            Degree bucket of the nodes, or ``None`` if widths do not depend on the degree.

    Reference:
        SGQuant (Feng et al., 2020, arXiv:2007.05100), "Multi-Granularity Quantization": bit
        widths by layer, component and node degree.
    """

    layer: str
    component: Component
    bucket: int | None = None

    def __str__(self) -> str:
        """Return the name of the site, for instance ``conv1/embedding/bucket0``."""
        parts = [self.layer, self.component]
        if self.bucket is not None:
            parts.append(f"bucket{self.bucket}")
        return "/".join(parts)

    @classmethod
    def parse(cls, name: str) -> Site:
        """Read the name that ``str(site)`` returned.

        Raises:
            ValueError:
                If the name is not of the form ``layer/component[/bucketN]``.
        """
        head, _, tail = name.rpartition("/")
        bucket = None
        if _BUCKET.fullmatch(tail):
            bucket = int(tail[6:])
            head, _, tail = head.rpartition("/")
        for component in COMPONENTS:
            if head and tail == component:
                return cls(head, component, bucket)
        raise ValueError(
            f"site name: expected 'layer/embedding', 'layer/attention' or "
            f"'layer/embedding/bucketN', got {name!r:.100}"
        )


class BitWidths(Mapping[Site, int]):
    """An immutable assignment of a bit width to every site, in the order of the sites.

    Args:
        bits:
            Bit width of each site: 1-8, 16 or 32.

    Example:
        >>> bits = BitWidths({Site("conv1", "embedding"): 1, Site("conv2", "embedding"): 4})
        >>> bits.to_json()
        '{"conv1/embedding": 1, "conv2/embedding": 4}'

    Raises:
        ValueError:
            If a width is not one of 1-8, 16 and 32.
    """

    __slots__ = ("_bits",)

    def __init__(self, bits: Mapping[Site, int]) -> None:
        self._bits = {
            site: check_bit_width(width, where=f"bit width of {site!s:.100}")
            for site, width in bits.items()
        }

    def __getitem__(self, site: Site) -> int:
        """Return the bit width of ``site``."""
        return self._bits[site]

    def __iter__(self) -> Iterator[Site]:
        """Iterate over the sites in their order."""
        return iter(self._bits)

    def __len__(self) -> int:
        """Return the number of sites."""
        return len(self._bits)

    def __hash__(self) -> int:
        """Return a hash that does not depend on the order of the sites."""
        return hash(frozenset(self._bits.items()))

    def __repr__(self) -> str:
        """Return an expression that creates the assignment."""
        return f"BitWidths.from_json({self.to_json()!r})"

    def to_dict(self) -> dict[str, int]:
        """Return ``{site name: bit width}``, a dictionary for JSON."""
        return {str(site): width for site, width in self._bits.items()}

    def to_json(self) -> str:
        """Return the assignment as one line of JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, bits: Mapping[str, int]) -> BitWidths:
        """Read the dictionary that :meth:`to_dict` returned.

        Raises:
            ValueError:
                If a site name or a width is not valid.
        """
        return cls({Site.parse(name): width for name, width in bits.items()})

    @classmethod
    def from_json(cls, text: str) -> BitWidths:
        """Read the JSON that :meth:`to_json` returned.

        Raises:
            ValueError:
                If the text is not JSON of that form.
        """
        bits = json.loads(text)
        if not isinstance(bits, dict):
            raise ValueError(f"bit widths: expected a JSON object, got {type(bits).__name__}")
        return cls.from_dict(bits)
