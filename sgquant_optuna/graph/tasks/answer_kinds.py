"""Kinds of answers: classes, several labels at once, and values.

Each says what outputs and targets look like, how they are trained, what counts as a changed
prediction, and how targets may turn out where nobody knows them: as the full-precision models
find probable, scaled on the labelled items.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

Draw = Callable[[torch.Generator], Tensor]
"""Function that draws the targets of all items from a generator."""

_LOG_TEMPERATURES = (-3.0, 3.0)


class Answers(ABC):
    """A kind of answers; ``I`` is the number of items, ``C`` that of outputs for each."""

    name: str
    """Name of the kind, as the fingerprint of a study has it."""

    @abstractmethod
    def wanted_targets(self, count: int) -> str:
        """Return what the targets of so many items look like, in words."""

    @abstractmethod
    def fit_targets(self, targets: Tensor, count: int) -> bool:
        """Tell whether targets have the type and shape of so many items."""

    @abstractmethod
    def known(self, targets: Tensor) -> Tensor:
        """Return for which items the target is known, ``[I]`` bool."""

    @abstractmethod
    def hidden(self, targets: Tensor, seen: Tensor) -> Tensor:
        """Return the targets with those outside a mask made unknown."""

    @abstractmethod
    def wanted_outputs(self, targets: Tensor) -> str:
        """Return what outputs for targets look like, in words."""

    @abstractmethod
    def fit_outputs(self, outputs: Tensor, targets: Tensor) -> bool:
        """Tell whether outputs have the shape that answers to targets have."""

    def shaped(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return outputs in the shape of their targets."""
        return outputs

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss, a scalar with a gradient."""

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return what of the outputs is kept of each training to compare them later."""
        return outputs

    @abstractmethod
    def changed(self, before: Tensor, after: Tensor, spread: float) -> float:
        """Return how much predictions have changed, in percent.

        Args:
            before:
                Predictions of full precision, ``[I]`` or ``[I, C]``.
            after:
                Predictions of the quantized model.
            spread:
                Deviation of the errors of full precision on labelled items; for values only.
        """

    @abstractmethod
    def drawer(self, outputs: Sequence[Tensor], labelled: Tensor, targets: Tensor) -> Draw:
        """Return a function that draws targets as probable as full precision finds them.

        Args:
            outputs:
                Outputs of each full-precision training for all items.
            labelled:
                Items of the validation set, ``[I]`` bool.
            targets:
                Targets of all items; those outside ``labelled`` are not read.
        """

    def spread(self, outputs: Sequence[Tensor], targets: Tensor) -> float:
        """Return the deviation of the errors of full precision on labelled items."""
        return 1.0


class Classes(Answers):
    """One class for each item: targets ``[I]`` int64, outputs ``[I, C]`` scores."""

    name = "classes"

    def wanted_targets(self, count: int) -> str:
        """Return what the targets of so many items look like, in words."""
        return f"int64 [{count}]"

    def fit_targets(self, targets: Tensor, count: int) -> bool:
        """Tell whether targets have the type and shape of so many items."""
        return targets.dtype == torch.long and targets.shape == (count,)

    def known(self, targets: Tensor) -> Tensor:
        """Return for which items the target is known, ``[I]`` bool."""
        return targets >= 0

    def hidden(self, targets: Tensor, seen: Tensor) -> Tensor:
        """Return the targets with those outside a mask made unknown."""
        return torch.where(seen, targets, torch.full_like(targets, -1))

    def wanted_outputs(self, targets: Tensor) -> str:
        """Return what outputs for targets look like, in words."""
        return f"class scores, float [{len(targets)}, {1 + int(targets.max())} or more]"

    def fit_outputs(self, outputs: Tensor, targets: Tensor) -> bool:
        """Tell whether outputs have the shape that answers to targets have."""
        fits = outputs.dim() == 2 and outputs.shape[0] == len(targets)
        return fits and outputs.shape[1] > int(targets.max())

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss, a scalar with a gradient."""
        return F.cross_entropy(outputs, targets)

    def changed(self, before: Tensor, after: Tensor, spread: float) -> float:
        """Return the percentage of items whose class is another."""
        return 100.0 * float((before.argmax(dim=1) != after.argmax(dim=1)).double().mean())

    def drawer(self, outputs: Sequence[Tensor], labelled: Tensor, targets: Tensor) -> Draw:
        """Return a function that draws classes; see the base class."""
        temperature = fitted_temperature(
            lambda t: F.nll_loss(
                mean_softmax([one[labelled] for one in outputs], t).clamp_min(1e-12).log(),
                targets[labelled],
            )
        )
        probabilities = mean_softmax(outputs, temperature)
        return lambda generator: probabilities.multinomial(1, generator=generator).flatten()


class Labels(Answers):
    """Several labels for each item, or one: targets of 0 and 1, outputs logits of that shape.

    Args:
        num_dims:
            Dimensions of the targets: 2 for ``[I, C]``, 1 for ``[I]``.
    """

    name = "labels"

    def __init__(self, num_dims: int) -> None:
        self._num_dims = num_dims

    def wanted_targets(self, count: int) -> str:
        """Return what the targets of so many items look like, in words."""
        return f"0 or 1, [{count}, labels]" if self._num_dims == 2 else f"0 or 1, [{count}]"

    def fit_targets(self, targets: Tensor, count: int) -> bool:
        """Tell whether targets have the type and shape of so many items."""
        shaped = targets.dim() == self._num_dims and len(targets) == count and targets.numel() > 0
        known = targets[self.known(targets)] if shaped else targets
        return shaped and bool(((known == 0) | (known == 1)).all())

    def known(self, targets: Tensor) -> Tensor:
        """Return for which items the target is known, ``[I]`` bool."""
        known = (targets >= 0) & (targets == targets)
        return known.all(dim=1) if targets.dim() == 2 else known

    def hidden(self, targets: Tensor, seen: Tensor) -> Tensor:
        """Return the targets with those outside a mask made unknown."""
        return _hidden(targets, seen)

    def wanted_outputs(self, targets: Tensor) -> str:
        """Return what outputs for targets look like, in words."""
        return f"a logit of each label, float {list(targets.shape)}"

    def fit_outputs(self, outputs: Tensor, targets: Tensor) -> bool:
        """Tell whether outputs have the shape that answers to targets have."""
        return outputs.shape in (targets.shape, (*targets.shape, 1))

    def shaped(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return outputs in the shape of their targets."""
        return outputs.reshape(targets.shape)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss, a scalar with a gradient."""
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))

    def changed(self, before: Tensor, after: Tensor, spread: float) -> float:
        """Return the percentage of decisions that are others; of one label, of orders.

        A single label is scored by the order of the items, as links are, so pairs of items are
        compared: each item with the one that is half of them away.
        """
        if before.dim() == 2:
            return 100.0 * float(((before > 0) != (after > 0)).double().mean())
        partner = (torch.arange(len(before)) + (len(before) + 1) // 2) % len(before)
        orders = [torch.sign(one - one[partner]) for one in (before, after)]
        return 100.0 * float((orders[0] != orders[1]).double().mean())

    def drawer(self, outputs: Sequence[Tensor], labelled: Tensor, targets: Tensor) -> Draw:
        """Return a function that draws labels; see the base class."""
        known = targets[labelled].double()

        def mean(of: Sequence[Tensor], temperature: float) -> Tensor:
            return torch.stack([(one.double() / temperature).sigmoid() for one in of]).mean(dim=0)

        temperature = fitted_temperature(
            lambda t: F.binary_cross_entropy(
                mean([one[labelled] for one in outputs], t).clamp(1e-12, 1 - 1e-12), known
            )
        )
        probabilities = mean(outputs, temperature)
        return lambda generator: torch.bernoulli(probabilities, generator=generator)


class Values(Answers):
    """Values for each item: targets and outputs float, ``[I]`` or ``[I, C]``."""

    name = "values"

    def wanted_targets(self, count: int) -> str:
        """Return what the targets of so many items look like, in words."""
        return f"float [{count}] or [{count}, values]"

    def fit_targets(self, targets: Tensor, count: int) -> bool:
        """Tell whether targets have the type and shape of so many items."""
        fits = targets.is_floating_point() and targets.dim() in (1, 2) and len(targets) == count
        return fits and targets.numel() > 0 and not bool(targets.isinf().any())

    def known(self, targets: Tensor) -> Tensor:
        """Return for which items the target is known, ``[I]`` bool."""
        known = targets == targets
        return known.all(dim=1) if targets.dim() == 2 else known

    def hidden(self, targets: Tensor, seen: Tensor) -> Tensor:
        """Return the targets with those outside a mask made unknown."""
        return _hidden(targets, seen)

    def wanted_outputs(self, targets: Tensor) -> str:
        """Return what outputs for targets look like, in words."""
        return f"values, float {list(targets.shape)}"

    def fit_outputs(self, outputs: Tensor, targets: Tensor) -> bool:
        """Tell whether outputs have the shape that answers to targets have."""
        return outputs.shape in (targets.shape, (*targets.shape, 1))

    def shaped(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return outputs in the shape of their targets."""
        return outputs.reshape(targets.shape)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss, a scalar with a gradient."""
        return F.mse_loss(outputs, targets.to(outputs.dtype))

    def changed(self, before: Tensor, after: Tensor, spread: float) -> float:
        """Return by how much values move, in percent of the deviation of their errors."""
        return 100.0 * float((before - after).abs().double().mean()) / spread

    def spread(self, outputs: Sequence[Tensor], targets: Tensor) -> float:
        """Return the deviation of the errors of full precision on labelled items."""
        mean = torch.stack([one.double() for one in outputs]).mean(dim=0)
        return max(math.sqrt(float((mean - targets).square().mean())), 1e-12)

    def drawer(self, outputs: Sequence[Tensor], labelled: Tensor, targets: Tensor) -> Draw:
        """Return a function that adds errors of labelled items, drawn at random, to the mean."""
        mean = torch.stack([one.double() for one in outputs]).mean(dim=0)
        errors = targets[labelled].double() - mean[labelled]

        def draw(generator: torch.Generator) -> Tensor:
            chosen = torch.randint(len(errors), (len(mean),), generator=generator)
            return mean + errors[chosen]

        return draw


def mean_softmax(scores: Sequence[Tensor], temperature: float) -> Tensor:
    """Average the class probabilities of all trainings, ``[I, C]`` float64."""
    total = torch.zeros_like(scores[0], dtype=torch.float64)
    for one in scores:
        total += (one.double() / temperature).softmax(dim=1)
    return total / len(scores)


def fitted_temperature(loss: Callable[[float], Tensor]) -> float:
    """Return the temperature at which probabilities fit the labels best.

    Args:
        loss:
            Function of a temperature that returns the mean negative log likelihood.

    Reference:
        Guo et al. (2017), "On Calibration of Modern Neural Networks".
    """
    found = minimize_scalar(
        lambda log: float(loss(math.exp(log))), bounds=_LOG_TEMPERATURES, method="bounded"
    )
    return math.exp(float(found.x))


def _hidden(targets: Tensor, seen: Tensor) -> Tensor:
    unknown = math.nan if targets.is_floating_point() else -1
    if targets.dtype == torch.bool:
        targets, unknown = targets.long(), -1
    mask = seen[:, None] if targets.dim() == 2 else seen
    return torch.where(mask, targets, torch.full_like(targets, unknown))
