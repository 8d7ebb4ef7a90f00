"""Altered files and attributes: what comes out has to be right, or one of our own errors.

Kinds: packed models and packed features of which a part was changed and the checksum made right
again, packed models and assignments of which bytes were changed, published files of data sets of
which bytes or indices were changed, and studies with foreign values under our keys, read by the
commands, the sampler and the workers. A case that ends in any other exception is printed with its
traceback, and the exit code is 1.

    python benchmarks/fuzz.py [--minutes 5] [--cases N] [--seed 0] [--quick]
    python benchmarks/fuzz.py --only "packed models"
"""

from __future__ import annotations

import argparse
import collections
import copy
import io
import json
import logging
import math
import pickle
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).parents[1]))  # the alterations are those of the tests
from sgquant_optuna.exceptions import SgquantError
from sgquant_optuna.graph.datasets import load_graph
from sgquant_optuna.graph.training import NODE_CLASSIFICATION
from sgquant_optuna.packed.container import read_container, write_container
from sgquant_optuna.packed.export import export_packed, load_packed
from sgquant_optuna.packed.packed_features import PackedFeatures
from sgquant_optuna.study.assignment import load_assignment
from tests.foreign_values import KEYS, READERS, altered, copied, put, read_by_all, small_study
from tests.graph.test_datasets import write_amazon, write_planetoid
from tests.packed.test_crafted_files import alterations
from tests.packed.test_damaged_bytes import damages
from tests.packed.test_packed_features import make
from tests.packed.test_packed_model import graph_of, quantized
from tests.study.test_assignment import ASSIGNMENT

ROUND = 200  # cases of a kind before the next kind has its turn
Case = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--cases", type=int, help="stop after this many, whatever the time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="ten seconds")
    parser.add_argument("--only", nargs="+", metavar="KIND", help="kinds that contain this text")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    minutes = options.minutes if options.cases is None else math.inf
    end = time.monotonic() + (10 if options.quick else 60 * minutes)
    tally: collections.Counter[str] = collections.Counter()
    raised: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        kinds = {
            "packed models": packed_models(Path(folder)),
            "packed features": packed_features(Path(folder)),
            "damaged packed models": damaged_models(Path(folder)),
            "planetoid files": planetoid_files(Path(folder)),
            "archives": archives(Path(folder)),
            "assignments": assignments(Path(folder)),
            "attributes": attributes(Path(folder)),
        }
        wanted = options.only or [""]
        kinds = {kind: run for kind, run in kinds.items() if any(one in kind for one in wanted)}
        number = options.seed
        most = options.cases or math.inf
        while time.monotonic() < end and sum(tally.values()) < most:
            number += 1
            for kind, run in kinds.items():
                until = min(end, time.monotonic() + 15)
                run(number, lambda kind=kind: tally.update([kind]), until, raised)
    print(f"{'kind':22} {'cases':>8} {'tracebacks':>11}")
    for kind in kinds:
        print(f"{kind:22} {tally[kind]:8,} {raised[kind]:11,}")
    print(f"{'all':22} {sum(tally.values()):8,} {sum(raised.values()):11,}")
    sys.exit(bool(raised))


def checked(
    kind: str, strategy: Any, case: Callable[[Any], None]
) -> Callable[[int, Case, float, collections.Counter[str]], None]:
    """Return a function that runs cases of a strategy until a time, and counts."""

    def run(number: int, count: Case, until: float, raised: collections.Counter[str]) -> None:
        @seed(number)
        @settings(
            deadline=None,
            max_examples=ROUND,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def one(value: Any) -> None:
            if time.monotonic() >= until:
                return
            count()
            try:
                case(value)
            except (SgquantError, FileNotFoundError):
                pass
            except Exception:
                raised[kind] += 1
                traceback.print_exc()

        one()

    return run


def packed_models(folder: Path) -> Any:
    model, data, layout, *_ = quantized("gat", graph_of(True))
    export_packed(model, data, folder / "model", layout=layout)
    fields, tensors = read_container(folder / "model", "packed_model")

    def case(changed: Any) -> None:
        write_container(folder / "altered model", "packed_model", *changed[:2])
        load_packed(folder / "altered model")(data)

    return checked("packed models", alterations(fields, tensors), case)


def packed_features(folder: Path) -> Any:
    features = make(9, 5, [4, 32, 2], "bucket")[0]
    features.save(folder / "features")
    fields, tensors = read_container(folder / "features", "packed_features")

    def case(changed: Any) -> None:
        write_container(folder / "altered features", "packed_features", *changed[:2])
        PackedFeatures.open(folder / "altered features").to_dense()

    return checked("packed features", alterations(fields, tensors), case)


def damaged_models(folder: Path) -> Any:
    model, data, layout, *_ = quantized("gcn", graph_of(True))
    export_packed(model, data, folder / "whole model", layout=layout)

    def case(content: bytes) -> None:
        (folder / "damaged model").write_bytes(content)
        load_packed(folder / "damaged model")(data)

    content = (folder / "whole model").read_bytes()
    return checked("damaged packed models", damages(content), case)


def planetoid_files(folder: Path) -> Any:
    """Pickles of which bytes were changed, and matrices with foreign indices."""
    from hypothesis import strategies as st

    raw = folder / "planetoid" / "Cora" / "raw"
    write_planetoid(raw)
    whole = {path.name: path.read_bytes() for path in raw.iterdir()}
    matrix = pickle.loads(whole["ind.cora.tx"])
    arrays = {name: getattr(matrix, name) for name in ("data", "indices", "indptr")}

    def pickled(change: tuple[str, Any]) -> tuple[str, bytes]:
        changed = copy.copy(matrix)
        setattr(changed, *change)
        return "ind.cora.tx", pickle.dumps(changed, protocol=4)

    shapes = st.tuples(st.integers(-1, 2**62), st.integers(-1, 2**62))
    matrices = st.one_of(
        st.sampled_from(sorted(arrays)).flatmap(
            lambda name: st.tuples(st.just(name), altered_array(arrays[name]))
        ),
        st.tuples(st.just("_shape"), shapes),
    ).map(pickled)
    bytes_changed = st.sampled_from(sorted(whole)).flatmap(
        lambda name: st.tuples(st.just(name), splices(whole[name]))
    )

    def case(changed: tuple[str, bytes]) -> None:
        name, content = changed
        (raw / name).write_bytes(content)
        try:
            NODE_CLASSIFICATION.check(load_graph("cora", folder))
        finally:
            (raw / name).write_bytes(whole[name])

    return checked("planetoid files", st.one_of(bytes_changed, matrices), case)


def archives(folder: Path) -> Any:
    """Archives of which bytes were changed, and arrays with foreign numbers and shapes."""
    from hypothesis import strategies as st

    raw = folder / "amazon" / "Computers" / "raw"
    write_amazon(raw)
    (file,) = raw.iterdir()
    whole = file.read_bytes()
    with np.load(file) as archive:
        arrays = dict(archive)

    def archived(change: tuple[str, Any]) -> bytes:
        out = io.BytesIO()
        np.savez(out, **{**arrays, change[0]: change[1]})
        return out.getvalue()

    changed = st.sampled_from(sorted(arrays)).flatmap(
        lambda name: st.tuples(st.just(name), altered_array(arrays[name]))
    )

    def case(content: bytes) -> None:
        file.write_bytes(content)
        (folder / "amazon/Computers/processed/sgquant.safetensors").unlink(missing_ok=True)
        load_graph("computers", folder)

    return checked("archives", st.one_of(splices(whole), changed.map(archived)), case)


def splices(content: bytes) -> Any:
    """Bytes of which some were replaced."""
    from hypothesis import strategies as st

    places = st.one_of(st.integers(0, len(content)), st.integers(0, min(len(content), 300)))
    return st.tuples(places, st.integers(0, 40), st.binary(max_size=9)).map(
        lambda draw: content[: draw[0]] + draw[2] + content[draw[0] + draw[1] :]
    )


def altered_array(array: Any) -> Any:
    """An array of which a value, the type, the length or the shape is another."""
    from hypothesis import strategies as st

    def one_value(draw: tuple[int, int]) -> Any:
        changed = array.astype(np.int64)
        changed[draw[0]] = draw[1]
        return changed

    numbers = st.one_of(st.integers(-3, 200), st.integers(-(2**62), 2**62))
    shaped = (array[:-1], array[::-1], array[None], array[:0], -array, np.r_[array, array])
    types = (np.float16, np.float64, np.uint8, np.uint64, bool, complex, "S3", ">i4", object)
    return st.one_of(
        st.tuples(st.integers(0, len(array) - 1), numbers).map(one_value),
        st.sampled_from(shaped),
        st.sampled_from(types).map(array.astype),
    )


def assignments(folder: Path) -> Any:
    from hypothesis import strategies as st

    ASSIGNMENT.save(folder / "a.json")
    content = (folder / "a.json").read_bytes()
    parsed = json.loads(content)

    def case(changed: Any) -> None:
        (folder / "b.json").write_bytes(changed)
        load_assignment(folder / "b.json")

    def spliced(draw: tuple[int, int, bytes]) -> bytes:
        start, length, piece = draw
        return content[:start] + piece + content[start + length :]

    places = st.integers(0, len(content))
    bytes_changed = st.tuples(places, st.integers(0, 40), st.binary(max_size=6)).map(spliced)
    values_changed = altered(parsed).map(lambda value: json.dumps(value).encode())
    return checked("assignments", st.one_of(bytes_changed, values_changed), case)


def attributes(folder: Path) -> Any:
    from hypothesis import strategies as st

    base = folder / "study"
    base.mkdir()
    study = small_study(base)
    stored = {
        "study": study.user_attrs,
        "trial": study.trials[2].user_attrs,
        "trial system": study.trials[2].system_attrs,
    }
    readers = tuple(name for name in READERS if name not in ("worker", "page"))
    shuffled = random.Random(0)

    def change(at: tuple[str, str]) -> Any:
        return st.tuples(st.just(at), altered(stored.get(at[0], {}).get(at[1])))

    def case(changed: Any) -> None:
        (where, key), value = changed
        with tempfile.TemporaryDirectory() as name:
            put(copied(base, Path(name)), where, key, value)
            for error in read_by_all(Path(name), (shuffled.choice(readers),)).values():
                raise error

    return checked("attributes", st.sampled_from(KEYS).flatmap(change), case)


if __name__ == "__main__":
    main()
