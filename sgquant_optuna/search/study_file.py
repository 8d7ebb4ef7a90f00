"""Own models for ``sgquant search`` and its workers: a function in a file of the user's.

The study keeps the name and the hash of the file. Each process is told by its own user where the
file is; a database cannot make it import anything.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from sgquant_optuna.exceptions import SgquantError, StudyFileError, StudyMismatchError
from sgquant_optuna.graph.columns import check_type
from sgquant_optuna.graph.fingerprint import model_fingerprint
from sgquant_optuna.graph.forward_pass import Forward, forward
from sgquant_optuna.graph.model_copies import copy_model
from sgquant_optuna.graph.node_types import Graph, device_of
from sgquant_optuna.graph.split_choice import Split, check_split
from sgquant_optuna.graph.tasks.task import Task
from sgquant_optuna.graph.training import NODE_CLASSIFICATION, fit
from sgquant_optuna.search.objective import QuantizationObjective
from sgquant_optuna.search.user_code_time import time_limit, waited_for
from sgquant_optuna.study.plan import SearchPlan
from sgquant_optuna.study.study_reference import StudyReference

IMPORT_SECONDS = 60.0
PATIENT_SECONDS = 10.0  # that your code may run before it is told what is waited for


@dataclass(frozen=True, kw_only=True)
class OwnStudy:
    """What the function of a study file returns: your graph and your models.

    Args:
        data:
            Graph with ``x``, ``edge_index``, ``y``, ``train_mask`` and ``val_mask``; a
            ``test_mask`` is opened by the final report alone. For a heterogeneous graph, ``task``
            names a node type.
        model:
            Function that makes an untrained module from a seed; torch is seeded with it before. Or
            a module that is trained already, or several of one architecture: then nothing is
            trained, and the final report varies the finetuning alone.
        train:
            Function that trains a module in place from a seed, for a loop of your own;
            :func:`.fit` with the options of the command line by default.
        forward:
            Function that calls the model with the graph; :func:`.columns` makes one.
        task:
            Items, loss and metric of the models, such as ``tasks.regression()``.
        split:
            Split of a graph with masks ``[N, S]``, its number or ``"all"``, where the command line
            names none. With ``"all"``, trained modules are in the order of the splits.

    Raises:
        GraphError:
            If ``data`` is no graph of one kind of nodes.
        TypeError:
            If a part is of another type.
    """

    data: Graph
    model: Callable[[int], nn.Module] | nn.Module | Sequence[nn.Module]
    train: Callable[[nn.Module, int], None] | None = None
    forward: Forward = forward
    task: Task = NODE_CLASSIFICATION
    split: Split | None = None

    def __post_init__(self) -> None:
        """Check the types, in the line of the user's file that made it."""
        check_type(self.data, hetero=True)
        if not self.trained and not _is_function(self.model):
            raise TypeError(
                f"model: expected a function of a seed, or trained modules, got "
                f"{_kind(self.model)}"
            )
        if self.trained and self.train is not None:
            raise TypeError("train: expected with a function as model, got it with trained ones")
        if not isinstance(self.task, Task):
            raise TypeError(
                f"task: expected one, as of tasks.regression(), got {_kind(self.task)}"
            )
        if self.split is not None:
            check_split(self.split)
        for name in ("train", "forward"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"{name}: expected a function, got {_kind(value)}")

    @property
    def trained(self) -> tuple[nn.Module, ...]:
        """The modules that are trained already; none if ``model`` makes them."""
        if isinstance(self.model, nn.Module):
            return (self.model,)
        if not isinstance(self.model, list | tuple):
            return ()
        wrong = [_kind(one) for one in self.model if not isinstance(one, nn.Module)]
        if wrong or not self.model:
            raise TypeError(
                f"model: expected a list of modules, got one with {wrong[0] if wrong else 'none'}"
            )
        return tuple(self.model)


class StudyFile:
    """An :class:`OwnStudy`, where it came from, and its models made and trained.

    Args:
        reference:
            Reference of the function, with the hash of its file.
        own:
            Value that the function returned.
        path:
            File of the function.
    """

    def __init__(self, reference: StudyReference, own: OwnStudy, path: Path) -> None:
        self.reference = reference
        self.own = own
        self._path = path
        self._architecture: dict[str, Any] | None = None

    def completed(self, plan: SearchPlan) -> SearchPlan:
        """Return a plan with the hash of the file, its split, and the number of trained models.

        Raises:
            StudyFileError:
                If all splits are meant, and the file has a training loop of its own.
        """
        split = self.own.split if plan.split is None else plan.split
        if split == "all" and self.own.train is not None:
            raise StudyFileError(
                f"{self.reference.text}: expected no train with all splits, as it would not know "
                f"which split it trains on; leave it out, or name one split"
            )
        models = len(self.own.trained) or plan.models
        return replace(plan, own=self.reference, models=models, split=split)

    def untrained(self, plan: SearchPlan, data: Graph, seed: int) -> nn.Module:
        """Return a new model of a seed; a copy of a trained one where these are given.

        A lazy layer is given its size by a forward pass.

        Raises:
            StudyFileError:
                If the function fails, returns no module, or one of another architecture than the
                first.
        """
        number = plan.training_seeds.index(seed) if self.own.trained else 0
        return self.instance(data, seed, number)

    def instance(self, data: Graph, seed: int = 0, number: int = 0) -> nn.Module:
        """Return a new model of a seed; a copy of a trained one, by its number, where given.

        Raises:
            StudyFileError:
                As :meth:`untrained` does.
        """
        text = self.reference.text
        if self.own.trained:
            made: object = copy_model(self.own.trained[number])
        else:
            assert not isinstance(self.own.model, nn.Module | Sequence)
            with self._seeded(seed, "model"), waited_for(text, f"model({seed})", PATIENT_SECONDS):
                made = self.own.model(seed)
        if not isinstance(made, nn.Module):
            raise StudyFileError(
                f"{text}: expected model({seed}) to return a torch.nn.Module, got {_kind(made)}"
            )
        made = made.to(device_of(data))
        if any(is_lazy(parameter) for parameter in made.parameters()):
            with self._seeded(seed, "forward"), torch.no_grad():
                self.own.forward(made, data)
        architecture = model_fingerprint(made)
        self._architecture = self._architecture or architecture
        if architecture != self._architecture:
            raise StudyFileError(
                f"{text}: expected models of one architecture, got another with seed {seed}: "
                f"{architecture['class']} {architecture['hash']}, the first was "
                f"{self._architecture['class']} {self._architecture['hash']}"
            )
        return made

    def train(self, model: nn.Module, data: Graph, plan: SearchPlan, seed: int) -> None:
        """Train a model in place as its user says; a trained one stays as it is.

        Raises:
            StudyFileError:
                If the user's function fails, or returns another model.
        """
        if self.own.train is not None:
            with self._seeded(seed, "train"):
                returned = self.own.train(model, seed)
            if returned is not None and returned is not model:
                raise StudyFileError(
                    f"{self.reference.text}: expected train(model, {seed}) to train its model in "
                    f"place, got {_kind(returned)} back"
                )
        elif not self.own.trained:
            call, task = self.own.forward, self.own.task
            fit(model, data, plan.training, seed=seed, forward=call, task=task)
        model.eval()

    @contextmanager
    def _seeded(self, seed: int, call: str) -> Iterator[None]:
        """Run a function of the user's from a seed; the random state of torch is restored."""
        device = device_of(self.own.data)
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            _told(self.reference.text, self._path, f"{call} with seed {seed}"),
        ):
            torch.manual_seed(seed)
            yield


def objective_of(
    models: Sequence[nn.Module], data: Graph, plan: SearchPlan, own: StudyFile | None
) -> QuantizationObjective:
    """Return the objective of a plan, for named models or those of a user's file."""
    if own is None:
        return QuantizationObjective(models, data, plan)
    call, task = own.own.forward, own.own.task
    return QuantizationObjective(models, data, plan, forward=call, task=task)


def named_study_file(plan: SearchPlan, study_name: str, given: str | None) -> StudyFile | None:
    """Load the file that a user names for a study; ``None`` for models that we know by name.

    Args:
        plan:
            Plan of the study.
        study_name:
            Name of the study.
        given:
            Reference that the user gave this process, if any.

    Raises:
        StudyFileError:
            If it cannot be imported, or does not return an :class:`OwnStudy`.
        StudyMismatchError:
            If a file is missing, not needed, or another one.
    """
    check_given(plan, study_name, given)
    return load_study_file(given, expected=plan.own, study_name=study_name) if given else None


def check_given(plan: SearchPlan, study_name: str, given: str | None) -> None:
    """Refuse a study of own models without ``--study``, and any other with it; read nothing."""
    if plan.own is None and given:
        raise StudyMismatchError(
            f"study {study_name!r} is of {plan.subject}: expected no --study (nor SGQUANT_STUDY), "
            f"got {given!r}"
        )
    if plan.own is not None and not given:
        raise StudyMismatchError(
            f"study {study_name!r} is of its user's own models: expected --study with "
            f"{plan.own.fingerprint}, got none; its maker wrote {plan.own.text!r}, but no file is "
            f"run because a database names it: pass a copy by --study FILE.py or SGQUANT_STUDY"
        )


def load_study_file(
    text: str, *, expected: StudyReference | None = None, study_name: str = ""
) -> StudyFile:
    """Import a file or module, and call its function.

    What it prints goes to the standard error. In the main thread, the import may take a minute;
    the function may take as long as it likes, and a line of the log tells when it takes long.

    Args:
        text:
            ``FILE.py`` (its function ``study``), ``FILE.py:function`` or
            ``package.module:function``.
        expected:
            Reference of the study that is joined; another content is refused before it runs.
        study_name:
            Name of that study.

    Raises:
        StudyFileError:
            If there is no such file, module or function, its code fails or takes too long, or it
            returns something else.
        StudyMismatchError:
            If another content was expected.
        ValueError:
            If the text is no reference.
    """
    reference = StudyReference(text)
    with time_limit(IMPORT_SECONDS, text):
        path = _file_of(reference)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StudyFileError(
                f"--study {text}: expected a Python file at {path}, cannot read it "
                f"({error.strerror})"
            ) from error
        reference = replace(reference, sha256=hashlib.sha256(content).hexdigest())
        if expected is not None and not reference.matches(expected):
            raise StudyMismatchError(
                f"study {study_name!r} was made by {expected.fingerprint}, which its maker wrote "
                f"{expected.text!r}: got {reference.fingerprint} by --study {text}; copy the file "
                f"that made the study to this machine"
            )
        with _told(text, path, "the import"), waited_for(text, "its import", PATIENT_SECONDS):
            module = _imported(reference, path, content)
    function = _function(module, reference)
    call = f"{reference.function}()"
    with _told(text, path, call), waited_for(text, call, PATIENT_SECONDS):
        own = function()
    if not isinstance(own, OwnStudy):
        raise StudyFileError(
            f"--study {text}: expected {reference.function}() to return a "
            f"sgquant_optuna.OwnStudy, got {_kind(own)}"
        )
    return StudyFile(reference, own, path)


def _file_of(reference: StudyReference) -> Path:
    if reference.is_file:
        return Path(reference.target).expanduser().absolute()
    folder = str(Path.cwd())  # as `python -m` does
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # This imports the packages that the module is in.
    with _told(reference.text, Path(), f"the import of {reference.target}"):
        spec = importlib.util.find_spec(reference.target)
    if spec is None or not (spec.origin or "").endswith(".py"):
        raise StudyFileError(
            f"--study {reference.text}: expected a module {reference.target} with a Python file, "
            f"found none in {folder} and the installed packages"
        )
    return Path(spec.origin or "")


def _imported(reference: StudyReference, path: Path, content: bytes) -> ModuleType:
    if not reference.is_file:
        return importlib.import_module(reference.target)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # its helpers lie beside it, as for `python FILE.py`
    module = ModuleType(f"sgquant_study_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    exec(compile(content, str(path), "exec"), module.__dict__)
    return module


def _function(module: ModuleType, reference: StudyReference) -> Callable[[], object]:
    name, text = reference.function, reference.text
    function = getattr(module, name, None)
    if not callable(function):
        own = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        raise StudyFileError(
            f"--study {text}: expected a function {name}() in {reference.target}, got "
            f"{'none' if function is None else _kind(function)}; its functions are "
            f"{', '.join(own) or 'none'}"
        )
    required = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if required:
        raise StudyFileError(
            f"--study {text}: expected {name}() to need no argument, got a function that requires "
            f"{', '.join(required)}; give each a default"
        )
    return function  # type: ignore[no-any-return]


@contextmanager
def _told(text: str, path: Path, what: str) -> Iterator[None]:
    """Run code of the user's: its prints go to the standard error, its mistakes are one line."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except SgquantError:
        raise
    except (Exception, SystemExit) as error:
        raise StudyFileError(
            f"--study {text}: {what} raised {type(error).__name__}{_place(error, path)}: "
            f"{error.msg if isinstance(error, SyntaxError) else error}"
        ) from error


def _place(error: BaseException, path: Path) -> str:
    """Name the last line of the user's file that an error went through."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f" in line {error.lineno} of {Path(error.filename or path).name}"
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == str(path)
    ]
    return f" in line {lines[-1]} of {path.name}" if lines else ""


def _is_function(value: object) -> bool:
    return callable(value) and not isinstance(value, nn.Module)


def _kind(value: object) -> str:
    """Name what came instead."""
    if value is None:
        return "None"
    return (
        f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
    )
