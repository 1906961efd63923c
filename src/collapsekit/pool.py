"""A pool of spawned workers on one machine in which a death costs one job, and that leaves no orphans.

It stands outside ``training`` so that a worker can watch its parent before it imports torch, which takes seconds.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from asyncio import CancelledError as AsyncCancelledError
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_end
from typing import Any

from collapsekit.errors import CollapseError
from collapsekit.validation import shorten

SPAWN = get_context("spawn")
# seconds in which a scheduler must have a worker; one that had, after which it must have one again; between two looks
PATIENCE, LONG_PATIENCE, POLL = 5.0, 30.0, 0.5
MOST_DEATHS = 3
REMEDIES = {
    -signal.SIGKILL: "; is there memory enough?",
    1: "; has the script an `if __name__ == '__main__':`?",  # without it, starting a worker starts the script again
}


class LocalPool(Executor):
    """Spawned workers, each with a thread of this process that feeds it.

    The pool of the standard library gives up as a whole when one worker dies. Here the job of the dead worker, and no
    other, ends in BrokenExecutor, and the next job finds a new worker. Workers leave interrupts to this process and die
    with it, even if it is killed.

    Parameters
    ----------
    workers : int
        How many; each is started with the first job that falls to it.
    """

    def __init__(self, workers: int) -> None:
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="worker", initializer=_without_interrupts)
        self._own = threading.local()
        self._lock, self._alive, self._closed = threading.Lock(), set[_Worker](), False

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Return the future of a call in one of the workers; what goes in and comes out is pickled."""
        return self._threads.submit(self._call, function, args, kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        """Kill the workers, whatever they do: runs lose at most what came after their last checkpoint."""
        with self._lock:
            self._closed = True
            for worker in self._alive:
                worker.process.kill()
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        for worker in self._alive if wait else ():
            worker.process.join()

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        worker = getattr(self._own, "worker", None) or self._started()
        try:
            worker.connection.send((function, args, kwargs))
            returned, value = worker.connection.recv()
        except (EOFError, OSError):
            self._own.worker = None
            with self._lock:
                self._alive.discard(worker)
            worker.process.join()
            code = worker.process.exitcode or 0
            raise BrokenExecutor(f"the worker died with exit code {code}{REMEDIES.get(code, '')}") from None
        if not returned:
            raise value
        return value

    def _started(self) -> _Worker:
        with self._lock:
            if self._closed:
                raise BrokenExecutor("the pool is shut down")
            worker = self._own.worker = _Worker()
            self._alive.add(worker)
            return worker


@contextmanager
def cluster(address: str | None) -> Iterator[Executor | None]:
    """Yield the executor of a Dask cluster, None without an address.

    Raises
    ------
    CollapseError
        If the `cluster` extra is missing, nothing answers at the address, or there are no workers.
    """
    if address is None:
        yield None
        return
    try:
        distributed: Any = import_module("distributed")
    except ModuleNotFoundError as missing:
        raise CollapseError(
            f"scheduler: {missing.name} is not installed; run: pip install 'collapsekit[cluster]'"
        ) from None
    try:
        client = distributed.Client(address, timeout="10s")
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CollapseError(f"scheduler={address!r}: {reason}; give the address that it prints") from None
    with client:
        yield require_workers(client.get_executor())


def submitted(executor: Executor, function: Callable[..., Any], *args: Any) -> Future[Any]:
    """Return the future of a call.

    Raises
    ------
    CollapseError
        If the executor takes no more: it is shut down, broken for good, or has lost its scheduler.
    """
    require_connection(executor)
    # For Dask an equal call is the same task, so that what failed once would fail for ever.
    options = {"pure": False} if getattr(executor, "_client", None) is not None else {}
    try:
        return executor.submit(function, *args, **options)
    except Exception as error:
        require_connection(executor)
        if not isinstance(error, RuntimeError):
            raise
        raise CollapseError(f"executor: {' '.join(str(error).split())}; repeat it with a new one") from None


def require_connection(executor: Executor) -> None:
    """Raise CollapseError if a Dask client behind this executor has lost its scheduler: jobs would never end."""
    client = getattr(executor, "_client", None)  # it has no public name
    if client is None:
        return
    reports = getattr(client, "_handle_report_task", None)  # ends, too, when the scheduler says that it closes
    if client.status in ("closing", "closed") or (reports is not None and reports.done()):
        raise _lost(client)


def _lost(client: Any) -> CollapseError:
    address = getattr(client.scheduler, "address", None) or getattr(client, "_start_arg", None)
    return CollapseError(f"scheduler={address!r}: connection lost; start it again and repeat the command")


def _workers(client: Any) -> int:
    """Return the number of threads of a Dask cluster; a scheduler that does not answer for some seconds is lost."""
    end = time.monotonic() + PATIENCE
    while client.status == "connecting" and time.monotonic() < end:  # again, that is
        time.sleep(POLL)
    try:
        if client.status == "running":
            return sum(client.nthreads().values())
    except (Exception, AsyncCancelledError):  # what a dead scheduler raises is an open set
        raise _lost(client) from None
    raise _lost(client)


def as_executor(executor: Any) -> Executor | None:
    """Return what jobs are submitted to: an executor, that of a Dask client, or None for this process.

    Raises
    ------
    CollapseError
        If it is none of these, or a Dask scheduler without workers.
    """
    if hasattr(executor, "get_executor"):
        executor = executor.get_executor()
    if executor is not None and not isinstance(executor, Executor):
        raise CollapseError(f"executor={shorten(executor)}: give a concurrent.futures.Executor, or a Dask Client")
    return None if executor is None else require_workers(executor)


def require_workers(executor: Executor, patience: float = PATIENCE) -> Executor:
    """Return the executor; raise CollapseError if it is a Dask cluster that gets no worker in so many seconds."""
    require_connection(executor)
    client = getattr(executor, "_client", None)
    if client is None:
        return executor
    end = time.monotonic() + patience
    while not _workers(client):  # a cluster's own count, in wait_for_workers, is lost once workers have died
        if time.monotonic() > end:
            address = client.scheduler.address
            raise CollapseError(f"scheduler={address!r}: has no workers; start one: dask worker {address} --nthreads 1")
        time.sleep(POLL)
        require_connection(executor)
    return executor


def in_order(
    executor: Executor, function: Callable[..., Any], firsts: Sequence[Any], shared: Any, what: Callable[[Any], str]
) -> Iterator[Any]:
    """Return ``function(first, shared)`` of each, in their order, while an executor does some of them at a time.

    A job whose worker died is done again, three times at most; nobody is more than twice the number of workers ahead,
    so that no more results wait.

    Parameters
    ----------
    executor : Executor
        Where.
    function : callable
        What; it is pickled by its name, and raises CollapseError for what the user can mend.
    firsts, shared : sequence, object
        Its arguments: one of the first for each job, and what all jobs share, which Dask keeps where the workers are.
    what : callable
        The argument's name, with its value, for messages.

    Raises
    ------
    CollapseError
        If the executor is lost, or one job kills three workers.
    """
    client = getattr(executor, "_client", None)
    workers = getattr(executor, "_max_workers", None) or os.cpu_count() or 1
    ahead = 2 * (workers if client is None else max(1, _workers(client)))
    kept, pending = shared if client is None else _kept(client, shared), deque[Future[Any]]()
    try:
        for k, first in enumerate(firsts):
            for other in firsts[k + len(pending) : k + ahead]:
                pending.append(submitted(executor, function, other, kept))
            deaths = 0
            while _is_lost(pending[0], executor):
                deaths += 1
                if deaths == MOST_DEATHS:
                    raise CollapseError(f"{what(first)}: {deaths} workers died of it; is there memory enough?")
                pending[0] = submitted(executor, function, first, kept)
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _kept(client: Any, shared: Any) -> Any:
    """Make an argument of megabytes a Dask task of its own.

    Each worker gets it once, from another that has it, and if all die that have it, the scheduler gives it anew (it
    cannot if data are scattered).
    """
    config: Any = import_module("dask.config")
    with config.set({"distributed.admin.large-graph-warning-threshold": "1TiB"}):
        return client.submit(_itself, shared, pure=False)


def _itself(shared: Any) -> Any:
    return shared


def _is_lost(future: Future[Any], executor: Executor) -> bool:
    """Wait for its end; whether that is the death of its worker."""
    while not wait([future], timeout=POLL).done:
        require_workers(executor, LONG_PATIENCE)
    require_connection(executor)
    if future.cancelled():
        return True
    error = future.exception()
    return error is not None and worker_died(error)


def worker_died(error: BaseException) -> bool:
    """Return whether a job ended so because its worker died, which Dask says with an error of its own."""
    return isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"


class _Worker:
    """A process and the connection to it."""

    def __init__(self) -> None:
        self.connection, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that the worker's death is the end of the connection


def _serve(connection: Connection) -> None:
    """Do one job after the other, until the connection or the parent ends."""
    os.dup2(2, 1)  # what a network prints is no result
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            function, args, kwargs = connection.recv()
        except EOFError:
            return
        try:
            answer = (True, function(*args, **kwargs))
        except Exception as error:
            answer = (False, error)
        connection.send(answer)


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait_for_end([parent.sentinel])
        os._exit(1)


def _without_interrupts() -> None:
    """Block SIGINT in this thread: a worker inherits that, so that Ctrl-C cannot hit it before it ignores it itself.

    Starting the resource tracker would unblock it again; hence that comes first.
    """
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
