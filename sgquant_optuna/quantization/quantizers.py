"""The module that fake-quantizes one matrix, with one bit width for each degree bucket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgquant_optuna.exceptions import CalibrationError
from sgquant_optuna.graph.sparse_features import SparseFeatures
from sgquant_optuna.quantization.affine import affine_parameters, fake_quantize
from sgquant_optuna.quantization.per_tensor import PerTensor
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.ranges import estimate_ranges
from sgquant_optuna.quantization.sites import FULL_PRECISION


@dataclass(frozen=True, eq=False)
class AffineTable:
    """Scale, zero point and bit width of each bucket or row of a quantizer.

    Args:
        scale:
            Step between neighbouring codes: ``[B, 1]``, ``[B, F]`` with axis ``"column"``, or
            ``[N, 1]`` with axis ``"row"``.
        zero_point:
            Real value of code 0, same shape as ``scale``.
        bit_width:
            Bits, ``[B, 1]`` or ``[N, 1]``; not used where ``is_full``.
        is_full:
            Whether values stay float32, same shape as ``bit_width``.
    """

    scale: Tensor
    zero_point: Tensor
    bit_width: Tensor
    is_full: Tensor

    def at(self, rows: Tensor, columns: Tensor | None = None) -> AffineTable:
        """Return the entries of some rows, or of single values if columns are given.

        Args:
            rows:
                Rows of the table, ``[n]`` int64.
            columns:
                Column of each value, ``[n]`` int64, or ``None``.

        Returns:
            Entries ``[n, 1]`` or ``[n, F]``; ``[n]`` if columns are given.
        """
        if columns is None:
            return AffineTable(
                self.scale[rows], self.zero_point[rows], self.bit_width[rows], self.is_full[rows]
            )
        column = columns if self.scale.shape[1] > 1 else torch.zeros_like(columns)
        return AffineTable(
            self.scale[rows, column],
            self.zero_point[rows, column],
            self.bit_width[rows, 0],
            self.is_full[rows, 0],
        )


class FeatureQuantizer(nn.Module):
    """Fake-quantizes a matrix, with one bit width for each degree bucket of rows.

    It is the identity until :meth:`calibrate` has measured ranges and :meth:`set_bit_widths` has
    chosen widths below 32. Ranges are measured once for every candidate width, and a trial
    chooses among them.

    Args:
        name:
            Name of the site without its bucket, ``layer/component``; error messages begin with it.
        config:
            Rounding, range estimator and axis.

    Reference:
        SGQuant (Feng et al., 2020, arXiv:2007.05100), "Topology-Aware Quantization", for bit
        widths by node degree.
    """

    _lower: Tensor  # [W, G]: W candidate widths, G groups of values that share a range
    _upper: Tensor  # [W, G]

    def __init__(self, name: str, config: QuantizerConfig) -> None:
        super().__init__()
        self.name = name
        self.config = config
        self.num_buckets = 1
        self.candidates: tuple[int, ...] = ()
        self.bit_widths: tuple[int, ...] = (FULL_PRECISION,)
        # Not persistent: the state_dict of a quantized model loads into the plain model.
        self.register_buffer("_lower", torch.empty(0, 0), persistent=False)
        self.register_buffer("_upper", torch.empty(0, 0), persistent=False)
        self._calibrated_bucket: Tensor | None = None
        self._checked_buckets: PerTensor[bool] = PerTensor()
        self.present_buckets: set[int] = set()  # buckets that had rows at calibration
        self._table: AffineTable | None = None
        self._gathered: PerTensor[AffineTable] = PerTensor()

    @property
    def is_identity(self) -> bool:
        """Whether every bucket keeps float32."""
        return all(width == FULL_PRECISION for width in self.bit_widths)

    def extra_repr(self) -> str:
        """Return name and bit widths, for ``repr``."""
        return f"{self.name!r}, bit_widths={self.bit_widths}"

    def calibrate(
        self,
        x: Tensor,
        candidates: Sequence[int],
        *,
        bucket: Tensor | None = None,
        num_buckets: int = 1,
    ) -> None:
        """Measure the ranges of ``x`` for every candidate width, and set all widths to 32.

        Args:
            x:
                Features, ``[N, F]``.
            candidates:
                Bit widths to measure ranges for; 32 needs no range.
            bucket:
                Degree bucket of each row, ``[N]`` int64, or ``None`` for one bucket.
            num_buckets:
                Number of degree buckets B; some may be empty.

        Raises:
            CalibrationError:
                If ``x`` is empty, or holds NaN or infinity.
        """
        if not x.numel():
            raise CalibrationError(f"{self.name}: expected values to calibrate on, got none")
        candidates = tuple(sorted(set(candidates) - {FULL_PRECISION}))
        dense = x.dense() if isinstance(x, SparseFeatures) else x
        self.num_buckets = 1 if bucket is None else num_buckets
        groups, num_groups = self._groups(dense, bucket)
        try:
            self._lower, self._upper = estimate_ranges(
                dense, groups, num_groups, candidates, self.config
            )
        except CalibrationError as error:
            raise CalibrationError(f"{self.name}: {error}") from error
        self.candidates, self._calibrated_bucket = candidates, bucket
        self.present_buckets = {0} if bucket is None else set(bucket.unique().tolist())
        self._checked_buckets.clear()
        self.set_bit_widths((FULL_PRECISION,) * self.num_buckets)

    def _groups(self, x: Tensor, bucket: Tensor | None) -> tuple[Tensor | None, int]:
        """Return the group of each value, broadcastable to ``x``, and the number of groups G."""
        match self.config.axis:
            case "column":
                return torch.arange(x.shape[1], device=x.device)[None, :], x.shape[1]
            case "row":
                return torch.arange(x.shape[0], device=x.device)[:, None], x.shape[0]
            case "bucket" if bucket is not None:
                return bucket[:, None], self.num_buckets
        return None, 1

    def set_bit_widths(self, bit_widths: Sequence[int]) -> None:
        """Choose the bit width of every degree bucket.

        Args:
            bit_widths:
                Bit width of each bucket, B of them; each is a calibrated candidate or 32.

        Raises:
            CalibrationError:
                If a width was not among the candidates of :meth:`calibrate`.
            ValueError:
                If the number of widths is not B.
        """
        if len(bit_widths) != self.num_buckets:
            raise ValueError(
                f"{self.name}: expected {self.num_buckets} bit widths, got {len(bit_widths)}"
            )
        for width in bit_widths:
            if width != FULL_PRECISION and width not in self.candidates:
                raise CalibrationError(
                    f"{self.name}: no range for {width} bits; calibrated for {self.candidates}"
                )
        self.bit_widths = tuple(bit_widths)
        self._clear_cache()

    def forward(self, x: Tensor, bucket: Tensor | None = None) -> Tensor:
        """Fake-quantize ``x``.

        Args:
            x:
                Features, ``[N, F]``, dense or :class:`SparseFeatures`.
            bucket:
                Degree bucket of each row, ``[N]`` int64; unused with one bucket.

        Returns:
            Features rounded to the real values of their codes, ``[N, F]``; ``x`` itself if all
            widths are 32. Sparse features stay sparse if every range maps zero to zero.

        Raises:
            CalibrationError:
                If the rows do not fit the buckets, or a bucket had no rows at calibration.
        """
        if self.is_identity:
            return x
        rows = self._table_rows(x, bucket)
        if not isinstance(x, SparseFeatures):
            return self._fake(x, self._gather(rows) if rows is not None else self.table())
        if not self.keeps_zero():
            return self.forward(x.dense(), bucket)
        row = x.pattern.row
        of_value = torch.zeros_like(row) if rows is None else rows[row]
        table = self.table().at(of_value, x.pattern.col)
        return x.with_non_zeros(self._fake(x.non_zeros, table))

    def table(self) -> AffineTable:
        """Return scale, zero point and bit width of every bucket, or of every row (axis "row").

        Raises:
            CalibrationError:
                If the quantizer is not calibrated.
        """
        if self._table is None:
            self._table = self._make_table()
        return self._table

    def _make_table(self) -> AffineTable:
        if not self.candidates:
            raise CalibrationError(f"{self.name}: call calibrate() before using its ranges")
        device = self._lower.device
        is_full = torch.tensor(self.bit_widths, device=device) == FULL_PRECISION
        # A full-precision bucket has the entry of the first candidate, which is not used.
        chosen = [
            0 if width == FULL_PRECISION else self.candidates.index(width)
            for width in self.bit_widths
        ]
        choice = torch.tensor(chosen, device=device)
        widths = torch.tensor(self.candidates, device=device)[choice]
        if self.config.axis == "row":
            nodes = torch.arange(self._lower.shape[1], device=device)
            bucket = self._calibrated_bucket
            of_node = torch.zeros_like(nodes) if bucket is None else bucket
            lower = self._lower[choice[of_node], nodes][:, None]
            upper = self._upper[choice[of_node], nodes][:, None]
            widths, is_full = widths[of_node], is_full[of_node]
        elif self.config.axis == "bucket" and self._lower.shape[1] > 1:
            buckets = torch.arange(self.num_buckets, device=device)
            lower = self._lower[choice, buckets][:, None]
            upper = self._upper[choice, buckets][:, None]
        else:
            lower, upper = self._lower[choice], self._upper[choice]
        scale, zero_point = affine_parameters(
            lower, upper, widths[:, None], rounding=self.config.rounding
        )
        return AffineTable(scale, zero_point, widths[:, None], is_full[:, None])

    def _table_rows(self, x: Tensor, bucket: Tensor | None) -> Tensor | None:
        """Return the table row of each row of ``x``; ``None`` if the table broadcasts to ``x``."""
        if self.config.axis == "row":
            if x.shape[0] != self._lower.shape[1]:
                raise CalibrationError(
                    f"{self.name}: calibrated with one range for each of "
                    f"{self._lower.shape[1]} rows, got {x.shape[0]} rows; use axis='tensor', "
                    f"'bucket' or 'column' for mini-batches"
                )
            rows = torch.arange(x.shape[0], device=x.device)
            return rows if isinstance(x, SparseFeatures) else None
        if self.num_buckets == 1:
            return None
        if bucket is None or len(bucket) != x.shape[0]:
            raise CalibrationError(
                f"{self.name}: expected the degree bucket of {x.shape[0]} rows, got "
                f"{'none' if bucket is None else len(bucket)}; bind the graph that is forwarded"
            )
        if self._checked_buckets.get(bucket) is None:  # checked once for each graph
            for missing in set(bucket.unique().tolist()) - self.present_buckets:
                raise CalibrationError(
                    f"{self.name}: degree bucket {missing} had no nodes at calibration; "
                    f"choose degree edges that every graph fills"
                )
            self._checked_buckets.set(bucket, True)
        return bucket

    def _gather(self, rows: Tensor) -> AffineTable:
        """Return the table with one entry for each row of ``x``, computed once for each graph."""
        known = self._gathered.get(rows)
        if known is None:
            known = self.table().at(rows)
            self._gathered.set(rows, known)
        return known

    def _fake(self, x: Tensor, table: AffineTable) -> Tensor:
        fake = fake_quantize(
            x, table.scale, table.zero_point, table.bit_width, rounding=self.config.rounding
        )
        if FULL_PRECISION not in self.bit_widths:
            return fake
        return torch.where(table.is_full, x, fake)

    def keeps_zero(self) -> bool:
        """Return whether every range maps zero to zero, so that sparse features stay sparse."""
        table = self.table()
        zeros = torch.zeros_like(table.scale)
        return not self._fake(zeros, table).any()

    def _clear_cache(self) -> None:
        self._table = None
        self._gathered.clear()
