"""Which widths are searched: a granularity and candidate widths become Optuna distributions.

A granularity is the parts of a site that stay in the name of its parameter; sites of one name
share one width. With all parts a parameter is called as its site, for instance
``conv1/embedding/bucket0``; layer-wise alone leaves ``conv1``; uniform leaves ``bits``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from sgquant_optuna.exceptions import EnqueuedTrialError
from sgquant_optuna.quantization.sites import BitWidths, Site, check_bit_width

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

DEFAULT_CANDIDATES = (1, 2, 4, 8)
Encoding = Literal["categorical", "ordinal"]

_PARTS = {"lwq": "layer", "cwq": "component", "taq": "bucket"}


def parse_granularity(granularity: str) -> frozenset[str]:
    """Read ``"uniform"`` or any of ``lwq``, ``cwq`` and ``taq`` joined by ``+``.

    Returns:
        The parts of a site that count: of ``layer``, ``component`` and ``bucket``.

    Raises:
        ValueError:
            If a word is none of those.

    Reference:
        SGQuant, "Multi-Granularity Quantization".
    """
    words = granularity.lower().replace(" ", "").split("+")
    if words == ["uniform"]:
        return frozenset()
    unknown = [word for word in words if word not in _PARTS]
    if unknown:
        raise ValueError(
            f"granularity: expected 'uniform' or lwq, cwq and taq joined by '+' such as "
            f"'lwq+cwq+taq', got {granularity!r}"
        )
    return frozenset(_PARTS[word] for word in words)


class BitWidthSearchSpace:
    """Turns the choices of an Optuna trial into the width of every site.

    Args:
        sites:
            Every site of the model, in the order of the forward pass.
        granularity:
            ``"uniform"``, or any of ``lwq``, ``cwq`` and ``taq`` joined by ``+``.
        candidates:
            Bit widths that every parameter chooses from.
        frozen:
            Width of sites that are not searched, by site name; a name without its last parts
            (``"conv1"``, ``"conv1/embedding"``) freezes all sites below it.
        encoding:
            ``"categorical"`` shows widths as they are. ``"ordinal"`` makes each parameter an
            integer index into the sorted widths: TPE and GP then know their order.

    Raises:
        ValueError:
            If a width, the granularity or the encoding is not valid, a frozen name fits no site,
            or nothing is left to search.

    Attributes:
        name_of:
            Parameter of each site that is searched.
    """

    def __init__(
        self,
        sites: Iterable[Site],
        *,
        granularity: str = "lwq+cwq+taq",
        candidates: Sequence[int] = DEFAULT_CANDIDATES,
        frozen: Mapping[str, int] | None = None,
        encoding: Encoding = "categorical",
    ) -> None:
        self.sites = tuple(sites)
        self.granularity = granularity
        self.candidates = check_candidates(candidates)
        if encoding not in get_args(Encoding):
            raise ValueError(f"encoding: expected one of {get_args(Encoding)}, got {encoding!r}")
        self.encoding = encoding
        self.frozen = self._freeze(frozen or {})
        parts = parse_granularity(granularity)
        self.name_of = {site: _name(site, parts) for site in self.sites if site not in self.frozen}
        self.names = tuple(dict.fromkeys(self.name_of.values()))
        if not self.names:
            raise ValueError("search space: every site is frozen; leave at least one to search")

    @property
    def widths(self) -> tuple[int, ...]:
        """Every width that a site can get, frozen ones included."""
        return tuple(sorted({*self.candidates, *self.frozen.values()}))

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The Optuna distribution of each parameter."""
        return {name: self._distribution() for name in self.names}

    def _distribution(self) -> BaseDistribution:
        # Imported here, so that the command line knows its options without loading Optuna.
        from optuna.distributions import CategoricalDistribution, IntDistribution

        if self.encoding == "ordinal":
            return IntDistribution(0, len(self.candidates) - 1)
        return CategoricalDistribution(self.candidates)

    def suggest(self, trial: BaseTrial) -> BitWidths:
        """Ask a trial for every parameter.

        Raises:
            EnqueuedTrialError:
                If the trial was enqueued with a parameter that is not in the space.
        """
        try:
            return self._suggest(trial)
        except (TypeError, ValueError) as error:
            raise _told_of_enqueued(trial, error) from None

    def _suggest(self, trial: BaseTrial) -> BitWidths:
        if self.encoding == "ordinal":
            top = len(self.candidates) - 1
            return self.from_params({n: trial.suggest_int(n, 0, top) for n in self.names})
        return self.from_params(
            {n: trial.suggest_categorical(n, self.candidates) for n in self.names}
        )

    def from_params(self, params: Mapping[str, Any]) -> BitWidths:
        """Return the width of every site, given a value for every parameter.

        Raises:
            ValueError:
                If a parameter is missing or its value is not a candidate.
        """
        widths = {name: self._width(name, params) for name in self.names}
        return BitWidths(
            {
                site: self.frozen[site] if site in self.frozen else widths[self.name_of[site]]
                for site in self.sites
            }
        )

    def params_of(self, bits: Mapping[Site, int]) -> dict[str, int]:
        """Return the parameters that give these widths; of sites that share one, the first's.

        Raises:
            ValueError:
                If the encoding is ordinal and a width is not a candidate.
            KeyError:
                If a site is missing.
        """
        widths: dict[str, int] = {}
        for site, name in self.name_of.items():
            widths.setdefault(name, bits[site])
        if self.encoding == "ordinal":
            return {name: self.candidates.index(width) for name, width in widths.items()}
        return widths

    def _width(self, name: str, params: Mapping[str, Any]) -> int:
        if name not in params:
            raise ValueError(f"parameters: expected one for {name!r}, got {sorted(params)}")
        value = params[name]
        if self.encoding == "ordinal":
            if value not in range(len(self.candidates)):
                raise ValueError(
                    f"parameter {name!r}: expected an index below {len(self.candidates)}, got "
                    f"{value!r}"
                )
            return self.candidates[int(value)]
        if value not in self.candidates:
            raise ValueError(
                f"parameter {name!r}: expected one of {self.candidates}, got {value!r}"
            )
        return int(value)

    def uniform_params(self, bit_width: int) -> dict[str, int]:
        """Return the parameters that give one candidate width to every searched site.

        Raises:
            ValueError:
                If it is not a candidate.
        """
        if bit_width not in self.candidates:
            raise ValueError(f"bit width: expected one of {self.candidates}, got {bit_width}")
        value = self.candidates.index(bit_width) if self.encoding == "ordinal" else bit_width
        return dict.fromkeys(self.names, value)

    def to_dict(self) -> dict[str, Any]:
        """Return what identifies the space, ready for JSON."""
        return {
            "parameters": list(self.names),
            "granularity": "+".join(sorted(self.granularity.lower().split("+"))),
            "candidates": list(self.candidates),
            "frozen": {str(site): width for site, width in self.frozen.items()},
            "encoding": self.encoding,
        }

    @classmethod
    def from_dict(cls, sites: Iterable[Site], space: Mapping[str, Any]) -> BitWidthSearchSpace:
        """Make the space of which ``to_dict`` wrote the description.

        Args:
            sites:
                Every site of the model, in the order of the forward pass.
            space:
                Description that ``to_dict`` returned.
        """
        return cls(
            sites,
            granularity=space["granularity"],
            candidates=space["candidates"],
            frozen=space["frozen"],
            encoding=space["encoding"],
        )

    def _freeze(self, frozen: Mapping[str, int]) -> dict[Site, int]:
        widths: dict[Site, int] = {}
        for name, width in frozen.items():
            check_bit_width(width, where=f"frozen width of {name}")
            covered = [
                site for site in self.sites if f"{site}/".startswith(f"{name.rstrip('/')}/")
            ]
            if not covered:
                raise ValueError(
                    f"frozen site: expected one of {', '.join(map(str, self.sites))}, got {name!r}"
                )
            widths |= dict.fromkeys(covered, width)
        return widths


def check_candidates(candidates: Sequence[int]) -> tuple[int, ...]:
    """Return candidate widths sorted and without repeats.

    Raises:
        ValueError:
            If there are none, or one is not 1-8, 16 or 32.
    """
    if not candidates:
        raise ValueError("candidate bit widths: expected at least one, got none")
    return tuple(sorted({check_bit_width(w, where="candidate bit widths") for w in candidates}))


def _name(site: Site, parts: frozenset[str]) -> str:
    words = []
    if "layer" in parts:
        words.append(site.layer)
    # Attention has no degree bucket: with TAQ it keeps its component as its name instead.
    if "component" in parts or ("bucket" in parts and site.bucket is None):
        words.append(site.component)
    if "bucket" in parts and site.bucket is not None:
        words.append(f"bucket{site.bucket}")
    return "/".join(words) or "bits"


def _told_of_enqueued(trial: BaseTrial, error: Exception) -> Exception:
    """Return what to raise where a trial gives no widths: another program may enqueue anything."""
    from optuna.trial import Trial

    from sgquant_optuna.sampler.claims import enqueued_of

    if not isinstance(trial, Trial):
        return error
    enqueued = enqueued_of(trial.storage.get_trial_system_attrs(trial._trial_id))
    if not enqueued:
        return error
    given = str(enqueued)[:200]
    return EnqueuedTrialError(
        f"expected enqueued parameters of the search space, got {given} ({error})"
    )
