"""Runs a function over many cases in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """Processes that live as long as the block in which they are used.

    Processes, not threads: ITK and HDF5 hold Python's lock while they read and pack.
    """

    def __init__(self, n: int) -> None:
        """Args: n: Processes; 1 stays in this one."""
        self.n = n
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        """Starts nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the processes once they have done what they are at."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def each(self, function: Callable[[T], R], items: Sequence[T], on_done: Callable[[int, R], None]) -> list[R]:
        """Calls `function` on every item; results in the order of the items.

        Args:
            function: Of a module, so that another process can import it.
            on_done: Told the item's number and the result as it comes.

        Raises:
            RuntimeError: A process was killed.
        """
        if self.n == 1 or len(items) == 1:
            results = []
            for number, item in enumerate(items):
                results.append(function(item))
                on_done(number, results[-1])
            return results
        try:
            executor = self._started()
            futures = {executor.submit(function, item): number for number, item in enumerate(items)}
            for future in as_completed(futures):
                on_done(futures[future], future.result())
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise RuntimeError(
                "A process that prepared scans was killed, as the system does when memory runs out. What is finished "
                f"is kept: run the same command again with fewer --workers (now {self.n})."
            ) from None

    def _started(self) -> ProcessPoolExecutor:
        if self._executor is None:
            # Each process computes on one core: matrix products with threads of their own would be in each other's way.
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
            # Spawned: a fork would copy the locks that ITK's threads hold.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self.n, context, initializer=_end_with_parent)
        return self._executor


def _end_with_parent() -> None:
    """Ends this process when the one that started it dies, however it dies: nobody else would."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
