"""Packed features as a file, and as a pickle that names the file instead of copying it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed.checks import check_finite, check_flag, check_shape, check_widths
from sgquant_optuna.packed.container import read_checksum, read_container, write_container
from sgquant_optuna.packed.feature_checks import check_declared_size
from sgquant_optuna.packed.integers import pack_integers, read_integers
from sgquant_optuna.quantization.layout import bits_for
from sgquant_optuna.quantization.sites import FULL_PRECISION

if TYPE_CHECKING:
    from sgquant_optuna.packed.features import PackedFeatures

KIND = "packed_features"


def save_features(features: PackedFeatures, path: str | Path) -> None:
    """Write a file of safetensors with a versioned header."""
    write_container(
        path,
        KIND,
        {
            "shape": list(features.shape),
            "bit_widths": list(features.bit_widths),
            "ranges_by_row": features.ranges_by_row,
        },
        {
            "data": features.data,
            "bucket": pack_integers(
                features.bucket.long(), bits_for(len(features.bit_widths) - 1)
            ),
            "scale": features.scale,
            "zero_point": features.zero_point,
        },
    )


def open_features(made: type[PackedFeatures], path: str | Path, *, verify: bool) -> PackedFeatures:
    """Map a file of :func:`save_features` into memory.

    Raises:
        PackingError:
            If the file is cut, altered, not of this kind, or holds what cannot be.
    """
    fields, tensors = read_container(path, KIND, verify=verify)
    try:
        shape = check_shape(fields["shape"], "shape of the features")
        widths = check_widths(fields["bit_widths"])
        check_declared_size(shape, tensors["data"].nbytes)
        bucket = read_integers(tensors["bucket"], shape[0], bits_for(len(widths) - 1))
        opened = made(
            tensors["data"],
            bucket.to(torch.uint8),
            widths,
            tensors["scale"],
            tensors["zero_point"],
            shape[1],
            check_flag(fields["ranges_by_row"], "ranges by row"),
        )
        if verify:
            _check_full_rows(opened)
    except PackingError as error:
        raise PackingError(f"{path}: {error}") from error
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise PackingError(f"{path}: its header does not fit its rows") from error
    return opened


def reopen_features(made: type[PackedFeatures], path: str, checksum: int) -> PackedFeatures:
    """Map the file again that a pickle names.

    Raises:
        PackingError:
            If another file lies there now.
        FileNotFoundError:
            If none does.
    """
    if read_checksum(path) != checksum:
        raise PackingError(f"{path}: expected the file that was pickled by name, got another")
    return made.open(path, verify=False)


def _check_full_rows(features: PackedFeatures) -> None:
    """Look for NaN and infinity in rows that are float32, a block at a time."""
    for bucket, width in enumerate(features.bit_widths):
        if width == FULL_PRECISION:
            packed = features.packed_rows(bucket)
            for rows, _ in features.blocks(bucket):
                check_finite(packed[rows].view(torch.float32), "float32 rows")
