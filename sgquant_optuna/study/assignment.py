"""An assignment of bit widths as a JSON file, for those who want the configuration alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgquant_optuna.exceptions import PackingError, short_message
from sgquant_optuna.graph.degree_edges import check_degree_edges
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.sites import BitWidths
from sgquant_optuna.storage.out_files import write_out_file

SCHEMA = "sgquant_optuna/assignment"
VERSION = 1
_MAX_NBYTES = 1 << 24
_KINDS: dict[str, type] = {
    "bit_widths": dict,
    "quantizer": dict,
    "degree_edges": list,
    "granularity": str,
    "fingerprint": dict,
    "source": dict,
}
_WORDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}


@dataclass(frozen=True)
class Assignment:
    """Settings and widths with which a model is to be quantized.

    Args:
        bit_widths:
            Width of every site.
        quantizer:
            Rounding, range estimator and axis.
        degree_edges:
            Lower degrees of the buckets above the first; empty without buckets.
        granularity:
            Granularity of the search: which sites share a width.
        fingerprint:
            Fingerprint of graph, model, weights, space and protocol of its search.
        source:
            Study, trial and what was measured.

    Example:
        ::

            found = load_assignment("widths.json")
            model = attach(model, config=found.quantizer, num_buckets=found.num_buckets)
            calibrate(model, data, candidates=found.candidates, forward=forward)
            set_bit_widths(model, found.bit_widths)
    """

    bit_widths: BitWidths
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    degree_edges: tuple[int, ...] = ()
    granularity: str = ""
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_buckets(self) -> int:
        """Degree buckets, for ``attach``."""
        return len(self.degree_edges) + 1

    @property
    def candidates(self) -> tuple[int, ...]:
        """Widths to calibrate for."""
        return tuple(sorted(set(self.bit_widths.values())))

    def save(self, path: str | Path) -> None:
        """Write to a JSON file; an old one stays whole if that fails.

        Raises:
            ValueError:
                If a part cannot be read again, as one with NaN, or the file cannot be written.
        """
        content = {
            "schema": SCHEMA,
            "version": VERSION,
            "granularity": self.granularity,
            "degree_edges": list(self.degree_edges),
            "bit_widths": self.bit_widths.to_dict(),
            "quantizer": self.quantizer.to_dict(),
            "fingerprint": dict(self.fingerprint),
            "source": dict(self.source),
        }
        try:
            text = json.dumps(content, indent=2, allow_nan=False) + "\n"
            if len(text) > _MAX_NBYTES:  # of ASCII
                raise ValueError(f"it takes over {_MAX_NBYTES} bytes")
            _assignment(_plain_json(text))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"assignment: expected what JSON can hold, and finite numbers alone, got other "
                f"values ({short_message(error)})"
            ) from error
        write_out_file(path, text)


def load_assignment(path: str | Path) -> Assignment:
    """Read a file of :meth:`Assignment.save` or ``sgquant export --out FILE.json``.

    Raises:
        FileNotFoundError:
            If there is no such file.
        PackingError:
            If it is no assignment, of another version, too long, or a part is not valid.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"assignment: expected a file at {path}, found none")
    if path.stat().st_size > _MAX_NBYTES:
        raise PackingError(
            f"{path}: expected an assignment, got a file of over {_MAX_NBYTES} bytes"
        )
    try:
        content = _plain_json(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        raise PackingError(
            f"{path}: expected JSON of an assignment, got something else ({short_message(error)})"
        ) from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise PackingError(f"{path}: expected schema {SCHEMA}, got another file")
    if content.get("version") != VERSION:
        raise PackingError(
            f"{path}: expected version {VERSION}, got {content.get('version')!r:.60}; use the "
            f"version of sgquant_optuna that made it"
        )
    try:
        return _assignment(content)
    except (TypeError, ValueError) as error:
        raise PackingError(f"{path}: {short_message(error)}") from error


def _assignment(content: Mapping[str, Any]) -> Assignment:
    """Read the parts of an assignment; any other type or value is an error that names it."""
    for name, kind in _KINDS.items():
        if name not in content:
            raise ValueError(f"expected a field {name!r}, got none")
        if not isinstance(content[name], kind):
            raise TypeError(f"{name}: expected {_WORDS[kind]}, got {type(content[name]).__name__}")
    found = Assignment(
        BitWidths.from_dict(content["bit_widths"]),
        QuantizerConfig(**content["quantizer"]),
        check_degree_edges(content["degree_edges"]),
        content["granularity"],
        content["fingerprint"],
        content["source"],
    )
    for site in found.bit_widths:
        if site.bucket is not None and site.bucket >= found.num_buckets:
            raise ValueError(
                f"bit widths: expected degree buckets below {found.num_buckets}, got {site!s:.100}"
            )
    return found


def _plain_json(text: str) -> Any:
    """Read JSON as the standard has it: no infinities, no name twice, nothing that UTF-8 lacks."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number")

    def finite(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            refuse(digits)
        return value

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name stands twice in an object")
        return found

    content = json.loads(text, parse_constant=refuse, parse_float=finite, object_pairs_hook=once)
    json.dumps(content, ensure_ascii=False).encode()  # a half of a surrogate pair fails
    return content
