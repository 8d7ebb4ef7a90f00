"""Every private name of Optuna and its dashboard that the package uses, and what it relies on.

A release of Optuna may change these names without a notice. Then this test fails and names them,
and the upper bounds in ``pyproject.toml`` keep such a release away from users until then.
"""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import sqlalchemy as sa

import sgquant_optuna

PACKAGE = Path(sgquant_optuna.__file__).parent
TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
FOREIGN = ("optuna", "optuna_dashboard", "sqlalchemy")

# Module -> name -> its parameters; None for what is no function of ours to call.
IMPORTED = {
    "optuna.storages._heartbeat": {"BaseHeartbeat": None},
    "optuna.storages._rdb": {"models": None},
    "optuna.storages._rdb.storage": {
        "_create_scoped_session": ["scoped_session", "ignore_integrity_error"]
    },
    "optuna.storages._grpc.auto_generated.api_pb2_grpc": {
        "StorageServiceStub": ["channel"],
        "add_StorageServiceServicer_to_server": ["servicer", "server"],
    },
    "optuna.storages._grpc.client": {"GrpcClientCache": ["grpc_client"]},
    "optuna.storages._grpc.servicer": {"OptunaStorageProxyService": ["storage"]},
    "optuna_dashboard._pareto_front": {"get_pareto_front_trials": ["trials", "directions"]},
    "optuna_dashboard._serializer": {
        "serialize_frozen_trial": ["study_id", "trial", "study_system_attrs"]
    },
}

# Class -> method that is overridden, called or repeated -> its parameters.
METHODS = {
    "optuna.storages.RDBStorage": {
        "_create_new_trial": ["self", "study_id", "template_trial"],
        "_get_best_trial_id": ["self", "study_id", "direction"],
        "_get_prepared_new_trial": ["self", "study_id", "template_trial", "session"],
        "_get_stale_trial_ids": ["self", "study_id"],
        "_get_trials": [
            *("self", "study_id", "states", "included_trial_ids", "trial_id_greater_than")
        ],
        "_set_trial_param": [
            *("self", "trial_id", "param_name", "param_value_internal", "distribution"),
            "previous_distribution",
        ],
        "_set_trial_param_without_commit": [
            *("self", "session", "trial_id", "param_name", "param_value_internal"),
            *("distribution", "previous_distribution"),
        ],
    },
    "optuna.storages._heartbeat.BaseHeartbeat": {"_get_stale_trial_ids": ["self", "study_id"]},
    "optuna.storages.GrpcStorageProxy": {"_setup": ["self"]},
}

# Class -> attributes that its own methods set or read on ``self``.
ATTRIBUTES = {
    "optuna.study.Study": {"_storage", "_study_id"},
    "optuna.trial.Trial": {"_trial_id"},
    "optuna.trial.FrozenTrial": {"_trial_id"},
    "optuna.storages._cached_storage._CachedStorage": {"_backend"},
    "optuna.storages.GrpcStorageProxy": {"_cache", "_channel", "_host", "_port", "_stub"},
}

# Rooms that know no Optuna; the private names that they use are of torch and PyTorch Geometric.
ROOMS_WITHOUT_OPTUNA = {"graph", "quantization", "attachment", "packed"}
OTHER_LIBRARIES = {"_exit", "_replace"}  # of os and of named tuples

# Tables and columns of Optuna's schema that study/rows.py and storage/reading.py select.
COLUMNS = {
    "trials": [
        *("trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete")
    ],
    "trial_params": [*("param_id", "trial_id", "param_name", "param_value", "distribution_json")],
    "trial_values": ["trial_id", "objective", "value", "value_type"],
    "trial_intermediate_values": [
        *("trial_id", "step", "intermediate_value", "intermediate_value_type")
    ],
    "trial_user_attributes": ["trial_user_attribute_id", "trial_id", "key", "value_json"],
    "trial_system_attributes": ["trial_system_attribute_id", "trial_id", "key", "value_json"],
    "trial_heartbeats": ["trial_id", "heartbeat"],
    "version_info": [],
}

TABLE = (
    {name for names in IMPORTED.values() for name in names if name.startswith("_")}
    | {name for names in METHODS.values() for name in names}
    | {name for names in ATTRIBUTES.values() for name in names}
)


def resolve(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def pairs(table):
    return [(owner, name) for owner, names in table.items() for name in sorted(names)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("module", "name"), pairs(IMPORTED))
def test_what_is_imported_exists(module, name):
    if "_grpc" in module:
        pytest.importorskip("grpc")
    found = resolve(f"{module}.{name}")
    parameters = IMPORTED[module][name]
    if parameters is not None:
        assert list(inspect.signature(found).parameters) == parameters, f"{module}.{name}"


@pytest.mark.parametrize(("owner", "name"), pairs(METHODS))
def test_methods_have_the_parameters_that_we_rely_on(owner, name):
    method = getattr(resolve(owner), name, None)
    assert method is not None, f"{owner}.{name} is gone"
    assert list(inspect.signature(method).parameters) == METHODS[owner][name], f"{owner}.{name}"


@pytest.mark.parametrize(("owner", "name"), pairs(ATTRIBUTES))
def test_objects_have_the_attributes_that_we_rely_on(owner, name):
    source = inspect.getsource(resolve(owner))
    assert re.search(rf"\bself\.{name}\b", source), f"{owner}.{name} is gone"


@pytest.mark.parametrize("table", COLUMNS)
def test_the_schema_has_the_columns_that_we_read(table):
    from optuna.storages._rdb import models

    tables: dict[str, sa.Table] = models.BaseModel.metadata.tables
    assert set(COLUMNS[table]) <= set(tables[table].columns.keys())


def test_rows_that_bypass_the_models_name_columns_of_the_table():
    from sgquant_optuna.study import rows

    for table in (value for value in vars(rows).values() if isinstance(value, sa.TableClause)):
        assert set(table.columns.keys()) <= set(COLUMNS[table.name])


def private_imports():
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [(node.module, alias.name) for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [(alias.name, "") for alias in node.names]
            else:
                continue
            for module, name in names:
                parts = f"{module}.{name}".split(".")
                if parts[0] in FOREIGN and any(part.startswith("_") for part in parts):
                    yield path, module, name


def test_every_private_import_stands_in_the_table():
    found = {module: set() for module in IMPORTED}
    for path, module, name in private_imports():
        assert name in IMPORTED.get(module, ()), f"{path}: from {module} import {name}"
        found[module].add(name)
    assert found == {module: set(names) for module, names in IMPORTED.items()}


def imported_packages(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)


@pytest.mark.parametrize("room", sorted(ROOMS_WITHOUT_OPTUNA))
def test_rooms_that_are_not_searched_know_no_optuna(room):
    for path in (PACKAGE / room).rglob("*.py"):
        assert not set(imported_packages(TREES[path])) & set(FOREIGN)


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name != "_"


def names_defined_in(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def names_used_in(tree):
    """Return the attributes of a file, and its strings that may name a private one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"_[a-z]\w*", node.value):
                yield node.value


def test_every_private_name_of_an_object_stands_in_the_table():
    found = set()
    for path, tree in TREES.items():
        if path.relative_to(PACKAGE).parts[0] in ROOMS_WITHOUT_OPTUNA:
            continue
        # In this package, a private name of ours is used in its own file alone.
        ours = set(names_defined_in(tree))
        for name in filter(is_private, names_used_in(tree)):
            found.add(name)
            assert name in TABLE | OTHER_LIBRARIES | ours, f"{path}: {name}"
    found |= {name for _, _, name in private_imports()} | {name for _, _, name in overrides()}
    assert TABLE | OTHER_LIBRARIES <= found, "the table has names that nothing uses"


def overrides():
    """Return each private method that a class of ours overrides in a class of Optuna."""
    for room in ("storage", "sampler"):
        for module in pkgutil.iter_modules([str(PACKAGE / room)]):
            members = vars(importlib.import_module(f"sgquant_optuna.{room}.{module.name}"))
            for cls in [m for m in members.values() if inspect.isclass(m)]:
                if not cls.__module__.startswith("sgquant_optuna."):
                    continue
                for base in cls.__mro__[1:]:
                    if base.__module__.split(".")[0] in FOREIGN:
                        yield from ((cls, base, name) for name in vars(cls) if name in vars(base))


def test_every_private_method_that_is_overridden_stands_in_the_table():
    known = {(resolve(owner), name) for owner, name in pairs(METHODS)}
    for cls, base, name in overrides():
        if is_private(name) and not name.startswith("_abc_"):
            assert (base, name) in known, f"{cls.__name__} overrides {base.__name__}.{name}"
