"""The numbers of bytes that the assignments of a search space can take, without any trial."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sgquant_optuna.quantization.memory import FeatureLayout, bucket_nbytes, site_store
from sgquant_optuna.study.search_space import BitWidthSearchSpace

_Floats = npt.NDArray[np.float64]
_MAX_SIZES = 100_000  # that are told apart on the way to the largest below a budget


@dataclass(frozen=True)
class ReachableSizes:
    """The honest bytes of the smallest and largest assignments, and of the largest below a budget.

    Args:
        layout:
            Every site with its size.
        search_space:
            Parameters of the trials.
    """

    layout: FeatureLayout
    search_space: BitWidthSearchSpace

    @property
    def smallest(self) -> float:
        """Bytes of the smallest assignment."""
        return self._fixed + sum(float(sizes.min()) for sizes in self._choices)

    @property
    def largest(self) -> float:
        """Bytes of the largest assignment."""
        return self._fixed + sum(float(sizes.max()) for sizes in self._choices)

    def largest_below(self, budget_bytes: float) -> float | None:
        """Return the bytes of the largest assignment within a budget; ``None`` if there is none.

        With more than 100,000 different sizes, those that lie together count as the largest of
        them: a somewhat larger assignment may exist, but what is returned always does.
        """
        sizes = np.array([self.smallest])  # what is not chosen yet has its fewest bytes
        for choices in self._choices:
            sizes = np.unique(sizes[:, None] + choices - choices.min())
            sizes = sizes[sizes <= budget_bytes]
            if len(sizes) > _MAX_SIZES:
                places = np.floor(sizes / sizes[-1] * _MAX_SIZES)
                sizes = sizes[np.append(places[1:] != places[:-1], True)]
        return float(sizes[-1]) if len(sizes) else None

    @cached_property
    def _choices(self) -> list[_Floats]:
        """Bytes of the sites of each parameter, for each candidate width."""
        nbytes: dict[str, _Floats] = {}
        for site, name in self.search_space.name_of.items():
            of_site = [
                site_store(site, self.layout.sizes[site], width)[1]
                for width in self.search_space.candidates
            ]
            nbytes[name] = nbytes.get(name, 0.0) + np.array(of_site, dtype=np.float64)
        return list(nbytes.values())

    @property
    def _fixed(self) -> float:
        """Bytes that no parameter changes."""
        frozen = sum(
            site_store(site, self.layout.sizes[site], width)[1]
            for site, width in self.search_space.frozen.items()
        )
        return float(frozen + bucket_nbytes(self.layout))
