"""Weights of a packed model: tied ones are stored once, and loaded into the user's own class."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from sgquant_optuna.exceptions import ModelError, PackingError
from sgquant_optuna.graph.fingerprint import model_fingerprint
from sgquant_optuna.graph.model_copies import copy_model, named_state
from sgquant_optuna.graph.paper_models import MODELS
from sgquant_optuna.packed.checks import check_count, check_finite


def weights_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights of a plain model, each once, and where those of other names are.

    Returns:
        Weights by name, and for each further name of the same weights the name that has them.

    Raises:
        ModelError:
            If some are not float32, or no tensors at all.
    """
    weights: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    names: dict[Any, str] = {}
    extra = {k: v for k, v in model.state_dict().items() if not isinstance(v, Tensor)}
    for name, value in {**named_state(model), **extra}.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or is_lazy(value):
            raise ModelError(
                f"{type(model).__name__}: expected dense tensors in its state_dict, got "
                f"{type(value).__name__} as {name}; a packed file cannot hold it"
            )
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ModelError(
                f"{type(model).__name__}: expected float32 weights, got "
                f"{str(value.dtype).removeprefix('torch.')} in {name}; packed models compute in "
                f"float32, so call model.float() before the search"
            )
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and key in names:
            tied[name] = names[key]
            continue
        names[key] = name
        # A view of other weights, too: a file holds no two tensors of one memory.
        weights[name] = value.clone()
    return weights, tied


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    tied: Mapping[str, str],
    fingerprint: Mapping[str, Any],
) -> nn.Module:
    """Return a copy of the user's model with the weights of a packed one.

    Args:
        model:
            Instance of the architecture.
        weights:
            Weights of the file by name.
        tied:
            Name among them that has the weights of each further name.
        fingerprint:
            Class and hash of the architecture that was packed.

    Raises:
        ModelError:
            If the model is of another architecture or type.
        PackingError:
            If the weights are no numbers.
    """
    name = type(model).__name__
    try:
        model = copy_model(model).eval()  # spectral_norm changes state that is read in training
        repr(model)
    except Exception as error:  # whatever a class may raise
        raise ModelError(
            f"{name} cannot be copied and described ({type(error).__name__}: {error})"
        ) from error
    every = with_tied(weights, tied)
    _check_sizes(model, every, fingerprint)
    # A buffer of another model may be a mask of infinities.
    check_weights(every, model, [name for name, _ in model.named_parameters()])
    try:
        model.load_state_dict(every, strict=True)
    except Exception as error:
        raise ModelError(
            f"{name} cannot load the weights of the file ({type(error).__name__}: {error})"
        ) from error
    for module in model.modules():
        _settle(module)
    check_architecture(model, fingerprint)
    for further, first in tied.items():
        _tie(model, further, first)
    return model


def paper_model(
    known: Any, weights: Mapping[str, Tensor], fingerprint: Mapping[str, Any]
) -> nn.Module:
    """Build a model of the paper with its weights, but not one that they could not be of.

    Raises:
        PackingError:
            If the file does not tell a model of the paper, or its weights do not fit.
    """
    model = _built(known, weights, fingerprint)
    check_architecture(model, fingerprint)
    check_weights(weights, model, weights)
    try:
        model.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        raise PackingError("packed model: its weights do not fit its architecture") from error
    return model


def with_tied(weights: Mapping[str, Tensor], tied: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the weights by all their names.

    Raises:
        PackingError:
            If a name leads to no weights.
    """
    for name, first in tied.items():
        if first not in weights or name in weights:
            raise PackingError(f"tied: expected {name} to be other weights, got {first}")
    return {**weights, **{name: weights[first] for name, first in tied.items()}}


def check_architecture(model: nn.Module, fingerprint: Mapping[str, Any]) -> None:
    """Check that a model is of the architecture that was packed.

    Raises:
        ModelError:
            If it is not.
    """
    found = model_fingerprint(model)
    if found != fingerprint:
        raise ModelError(
            f"{found['class']}: expected the architecture that was packed "
            f"({fingerprint['class']}), got one of other layers or settings; build it as the "
            f"model that was exported"
        )


def check_weights(
    weights: Mapping[str, Tensor], model: nn.Module, finite: Collection[str]
) -> None:
    """Check types and values of the weights; loading them checks names and shapes.

    Args:
        weights:
            Weights of the file, by name.
        model:
            Model that takes them.
        finite:
            Names of those that must be finite.

    Raises:
        PackingError:
            If one is of another type, or no number.
    """
    state = named_state(model)
    for name, value in weights.items():
        if name in state and value.dtype != state[name].dtype:
            raise PackingError(f"{name}: expected {state[name].dtype}, got {value.dtype}")
        if name in finite:
            check_finite(value, name)


def _check_sizes(
    model: nn.Module, weights: Mapping[str, Tensor], fingerprint: Mapping[str, Any]
) -> None:
    """Name the first weights that differ: a hash could not tell what to do."""
    where = (
        f"{type(model).__name__}: expected the architecture that was packed "
        f"({fingerprint['class']})"
    )
    todo = "build it with the arguments of the model that was exported"
    state = named_state(model)
    for name, value in state.items():
        if name not in weights:
            raise ModelError(f"{where}, got one with weights {name} as well; {todo}")
        if is_lazy(value):
            continue
        if value.shape != weights[name].shape:
            raise ModelError(
                f"{where}, with {name} {list(weights[name].shape)}, got "
                f"{list(value.shape)}; {todo}"
            )
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ModelError(
                f"{type(model).__name__}: expected float32 weights, got "
                f"{str(value.dtype).removeprefix('torch.')} in {name}; call model.float() first"
            )
    for name in weights:
        if name not in state:
            raise ModelError(f"{where}, got one without weights {name}; {todo}")


def _settle(module: nn.Module) -> None:
    """Make a lazy module that was given its weights the module that a first call makes of it."""
    if not isinstance(module, LazyModuleMixin) or module.cls_to_become is None:
        return
    lines = {"in_features": 1, "num_features": 0}  # dimension of the weights that has the size
    for name, dim in lines.items():
        weight = getattr(module, "weight", None)
        weight = weight if weight is not None else getattr(module, "running_mean", None)
        if getattr(module, name, None) == 0 and weight is not None:
            setattr(module, name, weight.shape[dim])
    for handle in ("_initialize_hook", "_load_hook"):
        if hasattr(module, handle):
            getattr(module, handle).remove()
            delattr(module, handle)
    module.__class__ = module.cls_to_become


def _tie(model: nn.Module, name: str, to: str) -> None:
    """Let one name of weights mean those of another name."""
    parts = [one.rpartition(".") for one in (name, to)]
    (module, last), (source, first) = ((model.get_submodule(p[0]), p[2]) for p in parts)
    for kind in ("_parameters", "_buffers"):
        if last in getattr(module, kind) and first in getattr(source, kind):
            getattr(module, kind)[last] = getattr(source, kind)[first]


def _built(known: Any, weights: Mapping[str, Tensor], fingerprint: Mapping[str, Any]) -> nn.Module:
    """Build a model of the paper, but not one that the weights could not be of."""
    if not isinstance(known, dict) or known.get("name") not in MODELS:
        raise PackingError(f"model: expected one of {', '.join(MODELS)}, got {known!r}")
    arguments = known.get("arguments")
    if not isinstance(arguments, dict):
        raise PackingError(f"arguments of the model: expected an object, got {arguments!r}")
    num_weights = sum(value.numel() for value in weights.values())
    for name, value in arguments.items():
        if name == "dropout":
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise PackingError(f"dropout of the model: expected 0 to 1, got {value!r}")
            continue
        most = len(weights) if name == "num_layers" else num_weights
        check_count(value, f"{name} of the model", low=1, high=most)
    build = MODELS[known["name"]]
    try:
        with torch.random.fork_rng(devices=[]):
            with torch.device("meta"):  # sizes alone, which may be absurd
                check_architecture(build(**arguments), fingerprint)
            return build(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PackingError(f"arguments of the model: {error}") from error
