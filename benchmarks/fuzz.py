"""Altered files and attributes: what comes out has to be right, or one of our own errors.

Kinds: packed models and packed features of which a part was changed and the checksum made right
again, assignments of which bytes were changed, and studies with foreign values under our keys,
read by the commands, the sampler and the workers. A case that ends in any other exception is
printed with its traceback, and the exit code is 1.

    python benchmarks/fuzz.py [--minutes 5] [--seed 0] [--quick]
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).parents[1]))  # the alterations are those of the tests
from sgquant_optuna.exceptions import SgquantError
from sgquant_optuna.packed.container import read_container, write_container
from sgquant_optuna.packed.export import export_packed, load_packed
from sgquant_optuna.packed.packed_features import PackedFeatures
from sgquant_optuna.study.assignment import load_assignment
from tests.foreign_values import KEYS, READERS, altered, copied, put, read_by_all, small_study
from tests.packed.test_crafted_files import alterations
from tests.packed.test_packed_features import make
from tests.packed.test_packed_model import graph_of, quantized
from tests.study.test_assignment import ASSIGNMENT

ROUND = 200  # cases of a kind before the next kind has its turn
Case = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="ten seconds")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    end = time.monotonic() + (10 if options.quick else 60 * options.minutes)
    tally: collections.Counter[str] = collections.Counter()
    raised: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        kinds = {
            "packed models": packed_models(Path(folder)),
            "packed features": packed_features(Path(folder)),
            "assignments": assignments(Path(folder)),
            "attributes": attributes(Path(folder)),
        }
        number = options.seed
        while time.monotonic() < end:
            number += 1
            for kind, run in kinds.items():
                until = min(end, time.monotonic() + 15)
                run(number, lambda kind=kind: tally.update([kind]), until, raised)
    print(f"{'kind':20} {'cases':>8} {'tracebacks':>11}")
    for kind in kinds:
        print(f"{kind:20} {tally[kind]:8,} {raised[kind]:11,}")
    print(f"{'all':20} {sum(tally.values()):8,} {sum(raised.values()):11,}")
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
