"""Work on many items side by side, in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741

THREADS = min(8, os.cpu_count() or 1)


def in_order(work: Callable[[I], T], items: Iterable[I], threads: int = THREADS) -> Iterator[T]:
    """`work` on every item, in order, some of them at work side by side.

    NumPy, zlib and Pillow let threads run side by side on large pictures; on small ones one thread is faster.
    """
    if threads == 1:
        yield from map(work, items)
        return
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
