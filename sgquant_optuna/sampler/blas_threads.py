"""Linear algebra on one thread while a round is ranked.

The matrices of a study are small: more threads never help, and on a machine whose cores are busy
with training they cost ten times the time, because each waits for the others to be scheduled. One
thread also gives the same rounding on every worker, which must all come to the same choice.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController


def one_blas_thread() -> AbstractContextManager[object]:
    """Keep BLAS to one thread; of several Python threads, threadpoolctl lets one decide."""
    limit: AbstractContextManager[object] = _libraries().limit(limits=1)
    return limit


@cache
def _libraries() -> ThreadpoolController:
    """BLAS libraries of NumPy and SciPy; to look for them takes milliseconds."""
    return ThreadpoolController().select(user_api="blas")
