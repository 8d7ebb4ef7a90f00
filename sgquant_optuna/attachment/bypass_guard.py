"""The check that every quantizer has an effect: a hidden one would look like a free saving."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sgquant_optuna.attachment.calibration import evaluating
from sgquant_optuna.attachment.quantized_call import context_of
from sgquant_optuna.attachment.quantized_model import site_quantizers
from sgquant_optuna.attachment.site_quantizer import SiteQuantizer
from sgquant_optuna.exceptions import QuantizerBypassedError


@torch.no_grad()
def check_effects(model: nn.Module, scores: Callable[[], Tensor]) -> None:
    """Quantize each layer and component alone, and refuse one that changes values but no score.

    This costs one forward pass for each of them, and one more. All degree buckets get the lowest
    candidate at once. A quantizer whose values are exact at that width (binary features, equal
    attention) has nothing to change and passes.

    Args:
        model:
            Calibrated model with quantizers; its bit widths are the same afterwards.
        scores:
            Function that calls the model and returns the class scores, ``[N, C]``.

    Raises:
        QuantizerBypassedError:
            If the scores do not depend on the values of a site, for instance because the model
            keeps a result of an earlier call.
    """
    graph = context_of(model)
    quantizers = [one for _, one in site_quantizers(model) if one.quantizer.candidates]
    before = {one: one.quantizer.bit_widths for one in quantizers}
    graph.changed = set()
    try:
        with evaluating(model):
            for one in quantizers:
                one.quantizer.set_bit_widths((32,) * len(before[one]))
            expected = scores()
            for one in quantizers:
                _check_effect(one, expected, scores)
    finally:
        graph.changed = None
        for one, widths in before.items():
            one.quantizer.set_bit_widths(widths)
            one.forget_inputs()


def _check_effect(one: SiteQuantizer, expected: Tensor, scores: Callable[[], Tensor]) -> None:
    quantizer = one.quantizer
    full, lowest = quantizer.bit_widths, quantizer.candidates[0]
    quantizer.set_bit_widths((lowest,) * len(full))
    try:
        found = scores()
    finally:
        quantizer.set_bit_widths(full)
    assert one.graph.changed is not None
    if one.name in one.graph.changed and torch.equal(found, expected):
        raise QuantizerBypassedError(
            f"the scores bypass the quantizer of {one.name}: expected other scores with "
            f"{lowest} bits there, which change its values, got the same to the last bit; the "
            f"model keeps an earlier result (cached=True, a cache of its own) or does not use "
            f"what the layer gives; turn the cache off, or leave the layer out with layers= or "
            f"attention="
        )
