"""The contents of a packed model, as its file holds them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgquant_optuna.exceptions import GraphError, ModelError, PackingError
from sgquant_optuna.packed.checks import check_buckets, check_ranges, top_codes
from sgquant_optuna.packed.container import read_container
from sgquant_optuna.packed.feature_use import EXACT, ExactFeatures
from sgquant_optuna.packed.graph_features import GraphFeatures
from sgquant_optuna.packed.input_features import InputPart
from sgquant_optuna.packed.integers import read_buckets
from sgquant_optuna.packed.model_header import ModelHeader, ModelSite
from sgquant_optuna.packed.model_weights import load_weights, paper_model, with_tied
from sgquant_optuna.packed.packed_features import PackedFeatures, check_full_rows
from sgquant_optuna.packed.packed_input import PackedInput
from sgquant_optuna.quantization.sites import FULL_PRECISION

KIND = "packed_model"
WEIGHTS = "weights."


class ModelContents:
    """Header and tensors of a packed model, checked against one another as they are used.

    Tensors are named ``weights.*``, ``scale.SITE`` and ``zero_point.SITE``, and for the graph's
    own features ``bucket``, ``input.SITE.BUCKET.*``, ``constant.SITE.CALL`` and ``exact.*``.

    Args:
        fields:
            Header, as :mod:`.model_header` describes it.
        tensors:
            Tensors by name.

    Raises:
        PackingError:
            If the header lacks a field or contradicts itself, or no site takes a tensor.
    """

    def __init__(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.fields, self.tensors = dict(fields), dict(tensors)
        self.header = ModelHeader.parse(fields)
        known, prefixes = self._of_graph() if self.header.has_graph else (set(), [])
        prefixes.append(WEIGHTS)
        for site in self.header.sites:
            if not site.is_identity:
                known |= set(range_names(site))
        for name in sorted(self.tensors):
            if name not in known and not name.startswith(tuple(prefixes)):
                raise PackingError(f"packed model: expected no tensor {name}")

    def _of_graph(self) -> tuple[set[str], list[str]]:
        """Return the names of the tensors that are of one graph alone, and how others begin."""
        use = self.header.features
        pairs = [(name, call) for name, calls in use.constant.items() for call in calls]
        prefixes = [
            input_prefix(site, number)
            for site in self.header.sites
            if site.is_input
            for number in site.sizes
        ]
        if use.exact is not None and use.exact_site is None:
            prefixes.append(EXACT)
        return {"bucket", *(constant_name(*pair) for pair in pairs)}, prefixes

    def without_graph(self) -> ModelContents:
        """Return the contents without what they hold of the graph.

        Raises:
            GraphError:
                If ranges are those of single nodes, or there are several node types.
        """
        if self.header.types.is_hetero:
            raise GraphError(
                "packed model: expected a graph of one node type, got several; a model of several "
                "is exported with its features"
            )
        for site in self.header.sites:
            if site.axis == "row":
                raise GraphError(
                    f"{site.name}: expected ranges that fit any graph, got one for each node "
                    f"(axis='row'); quantize with axis='tensor', 'bucket' or 'column', or export "
                    f"with the features"
                )
        fields = {name: value for name, value in self.fields.items() if name != "edges"}
        known, prefixes = self._of_graph()
        tensors = {
            name: tensor
            for name, tensor in self.tensors.items()
            if name not in known and not name.startswith(tuple(prefixes))
        }
        for site in self.header.sites:
            if site.is_input and not site.is_identity:
                ranges = self.input_ranges(site)
                assert ranges is not None
                lines = site.stored_lines(None)
                stored = (part[lines].contiguous() for part in ranges)
                tensors |= dict(zip(range_names(site), stored, strict=True))
        return ModelContents(fields, tensors)

    @classmethod
    def read(cls, path: str | Path, *, verify: bool = True) -> ModelContents:
        """Read a file.

        Args:
            path:
                File of a packed model.
            verify:
                Whether to compare the checksum.

        Raises:
            PackingError:
                If the file is cut, altered, of another kind, or not ours.
        """
        return cls(*read_container(path, KIND, verify=verify))

    def pack(self, name: str, x: Tensor) -> PackedFeatures:
        """Pack features that a layer takes, ``[N, F]`` float32, as its site says."""
        site = next(site for site in self.header.sites if site.name == name)
        return PackedFeatures.from_dense(
            x,
            self.bucket_of(site),
            site.bit_widths,
            *self.ranges(site),
            rounding=self.header.config.rounding,
            ranges_by_row=site.axis == "row",
        )

    def constant_of(self, site: ModelSite, call: int) -> PackedFeatures:
        """Return the packed features that a call of a layer takes each time.

        Raises:
            PackingError:
                If they are missing or do not fit.
        """
        tensor = constant_name(site.name, call)
        if tensor not in self.tensors:
            raise PackingError(f"packed model: expected a tensor {tensor}, got none")
        bucket = self.bucket_of(site)
        if bucket is None:
            bucket = torch.zeros(self.header.layout.num_nodes, dtype=torch.uint8)
        scale, zero_point = self.ranges(site)
        packed = PackedFeatures(
            self.tensors[tensor],
            bucket,
            site.bit_widths,
            scale,
            zero_point,
            site.num_columns,
            site.axis == "row",
        )
        check_full_rows(packed)
        return packed

    def graph_features(self) -> GraphFeatures | None:
        """Return what the file holds of its graph; ``None`` if it holds the model alone.

        Raises:
            PackingError:
                If its tensors do not fit.
        """
        header, exact = self.header, None
        if not header.has_graph:
            return None
        if header.features.exact is not None:
            exact = ExactFeatures(self._exact_features())
        by_name = {site.name: site for site in header.sites}
        return GraphFeatures(
            edges=self.fields["edges"],
            num_nodes=header.layout.num_nodes,
            shape=header.features.shape,
            bucket=self.bucket,
            num_buckets=header.layout.num_buckets,
            inputs={site.name: self.input_of(site) for site in header.sites if site.is_input},
            contents={},
            constants={
                (name, call): self.constant_of(by_name[name], call)
                for name, calls in header.features.constant.items()
                for call in calls
            },
            exact=exact,
            types=header.types,
            has_own_exact=header.features.exact_site is None,
        )

    def _exact_features(self) -> PackedInput:
        use = self.header.features
        if use.exact_site is not None:
            sites = [site for site in self.header.sites if site.name == use.exact_site]
            return self.input_of(sites[0])
        sparse = any(site.sparse for site in self.header.sites)
        return use.exact_input(self._named(EXACT), sparse=sparse)

    @cached_property
    def bucket(self) -> Tensor | None:
        """Degree bucket of each node, ``[N]`` uint8; ``None`` for one bucket, or no graph.

        Raises:
            PackingError:
                If the buckets are missing, too many, or out of range.
        """
        num_buckets = self.header.layout.num_buckets
        if not self.header.has_graph:
            return None
        if (num_buckets > 1) != ("bucket" in self.tensors):
            raise PackingError(
                f"degree buckets: expected those of {num_buckets}, the file has "
                f"{'some' if 'bucket' in self.tensors else 'none'}"
            )
        if num_buckets == 1:
            return None
        bucket = read_buckets(self.tensors["bucket"], self.header.layout.num_nodes, num_buckets)
        check_buckets(bucket, num_buckets)
        return bucket

    def bucket_of(self, site: ModelSite) -> Tensor | None:
        """Return the degree bucket of each row of a site, ``[N]``; ``None`` where there is one."""
        types, bucket = self.header.types, self.bucket if len(site.bit_widths) > 1 else None
        return None if bucket is None else types.part(types.of_site(site.name), bucket)

    def plain_model(self, model: nn.Module | None = None) -> nn.Module:
        """Return the float32 model with the weights of the packed one.

        Args:
            model:
                Instance of the architecture; may be left out for models of the paper.

        Raises:
            ModelError:
                If the model is of another architecture, or is needed and missing.
            PackingError:
                If the weights do not fit.
        """
        known, fingerprint = self.fields.get("model"), self.fields["model_fingerprint"]
        weights = self._named(WEIGHTS)
        if model is not None:
            model = load_weights(model, weights, self.header.tied, fingerprint)
        elif known is not None:
            every = with_tied(weights, self.header.tied)
            model = paper_model(known, every, fingerprint)
        else:
            raise ModelError(
                f"packed model: expected an instance of {fingerprint['class']}, got none; give "
                f"the model whose weights the file holds, as model="
            )
        return model.requires_grad_(False)

    def input_of(self, site: ModelSite) -> PackedInput:
        """Return the graph's features as one site holds them.

        Raises:
            PackingError:
                If their tensors do not fit, or take other bytes than the accounting says.
        """
        parts: list[InputPart | None] = [None] * len(site.bit_widths)
        for number, size in site.sizes.items():
            store, expected = site.store(number)
            part = InputPart(
                store,
                site.bit_widths[number],
                (size.num_rows, size.num_columns),
                self._named(input_prefix(site, number)),
                site.count_bits(number),
            )
            if part.nbytes != expected:
                raise PackingError(
                    f"{site.name}, degree bucket {number}: the accounting says {expected} bytes "
                    f"of {store}, the file has {part.nbytes}"
                )
            parts[number] = part
        return PackedInput(parts, self.bucket_of(site), sparse=site.sparse)

    def stored_ranges(self, site: ModelSite) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of a site, one line for each that is used.

        Raises:
            PackingError:
                If they are missing or cannot be ranges of the site.
        """
        names = range_names(site)
        for name in names:
            if name not in self.tensors:
                raise PackingError(f"packed model: expected a tensor {name}, got none")
        scale, zero_point = (self.tensors[name] for name in names)
        bucket, tops = self.bucket_of(site), top_codes(site.bit_widths)
        if site.axis == "row":
            tops = tops.expand(site.num_ranges, 1) if bucket is None else tops[bucket.long()]
        tops = tops[site.stored_lines(bucket)]
        columns = site.num_columns if site.axis == "column" else 1
        check_ranges(scale, zero_point, site.name, {(len(tops), columns)}, tops)
        return scale, zero_point

    def input_ranges(self, site: ModelSite) -> tuple[Tensor, Tensor] | None:
        """Return scale and zero point of a site that takes the graph's features.

        Returns:
            Scale and zero point, ``[B, 1]`` or ``[B, F]`` each, 1 where nothing is quantized;
            ``None`` if the file does not hold them, or has one for each node.

        Raises:
            PackingError:
                If they cannot be ranges of the site.
        """
        columns = site.num_columns if site.axis == "column" else 1
        spread = torch.ones(2, len(site.bit_widths), columns)
        lines = self.header.range_lines(site)
        if lines:
            if not all(name in self.tensors for name in range_names(site)):
                return None
            tops = top_codes(site.bit_widths)[lines]
            scale, zero_point = (self.tensors[name] for name in range_names(site))
            check_ranges(scale, zero_point, site.name, {(len(lines), columns)}, tops)
            spread[0, lines], spread[1, lines] = scale, zero_point
        if site.axis == "row":
            return None
        for number, width in enumerate(site.bit_widths):
            if width != FULL_PRECISION and number not in lines:
                named = self._named(input_prefix(site, number))
                spread[0, number], spread[1, number] = named["scale"][0], named["zero_point"][0]
        return spread[0], spread[1]

    def ranges(self, site: ModelSite) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of all degree buckets or rows of a site.

        Returns:
            Scale and zero point, ``[B, 1]``, ``[B, F]`` or ``[N, 1]`` each; where nothing is
            quantized, both are 1.

        Raises:
            PackingError:
                If they are missing or cannot be ranges of the site.
        """
        lines = site.num_ranges if site.axis == "row" else len(site.bit_widths)
        if site.is_identity:
            return torch.ones(lines, 1), torch.ones(lines, 1)
        scale, zero_point = self.stored_ranges(site)
        stored = site.stored_lines(self.bucket_of(site))
        spread = scale.new_ones(2, lines, scale.shape[1])
        spread[0, stored], spread[1, stored] = scale, zero_point
        return spread[0], spread[1]

    def _named(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with a prefix, without it."""
        return {
            name[len(prefix) :]: tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


def range_names(site: ModelSite) -> tuple[str, str]:
    """Return the names of the tensors with scale and zero point of a site."""
    return f"scale.{site.name}", f"zero_point.{site.name}"


def constant_name(name: str, call: int) -> str:
    """Return the name of the tensor that a call of a layer takes each time."""
    return f"constant.{name}.{call}"


def input_prefix(site: ModelSite, number: int) -> str:
    """Return how the names of the packed features of a degree bucket begin."""
    return f"input.{site.name}.{number}."
