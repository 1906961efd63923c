"""sweep: many configurations through any executor; what is finished is read, what is unfinished goes on."""

from __future__ import annotations

import math
import operator
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch

from collapsekit import files
from collapsekit.errors import CollapseError
from collapsekit.pool import LocalPool, require_connection, submitted, worker_died
from collapsekit.training import checkpoint, runs, store
from collapsekit.training._config import TrainConfig
from collapsekit.training._split import load_split
from collapsekit.training._train import ONE_AT_A_TIME, interruptible, train
from collapsekit.validation import shorten, whole_number

POLL = 0.5
"""Seconds between two looks at runs that are under way."""
MOST_DEATHS = 3
"""A run whose workers died so often, and that got no further between, is given up."""
MOST_RUNS = 100_000
"""A grid of more is taken for a slip of the pen."""
DATA_FIELDS = ("data", "label_column", "profile", "ratio", "largest", "class_names", "seed")
"""What decides the training set."""

Grid = Mapping[str, Any]
"""Values by the name of a field of TrainConfig: a list or range stands for one configuration a value."""


@dataclass(frozen=True)
class Outcome:
    """What became of one configuration of a sweep.

    Attributes
    ----------
    config : TrainConfig
        What was to be trained.
    folder : Path
        Where the run is stored; ``load_run(folder)`` reads it if it is finished.
    reason : str or None
        Why there is no finished run, or None if there is one.
    anew : str or None
        What was wrong with the run that was stored there, so that it was trained anew; None if nothing was.
    """

    config: TrainConfig
    folder: Path
    reason: str | None = None
    anew: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return self.reason is None


@dataclass(frozen=True)
class Standing:
    """How far a sweep is.

    Attributes
    ----------
    outcomes : tuple of Outcome
        Of the runs that are over, in the order in which they ended.
    running : dict
        Step of the last checkpoint of each configuration that a process trains now, here or in another sweep.
    left : int
        Configurations that are not over, the running ones among them.
    """

    outcomes: tuple[Outcome, ...]
    running: Mapping[TrainConfig, int]
    left: int


def sweep(
    configs: Iterable[TrainConfig] | Grid,
    *,
    out: str | os.PathLike[str] = "runs",
    executor: Executor | None = None,
    workers: int = 2,
    part: tuple[int, int] | None = None,
    device: str = "cpu",
    progress: Callable[[Standing], None] | None = None,
) -> list[Outcome]:
    """Train every configuration of a list or grid, each in a folder of its own; a repeated sweep goes on.

    Finished runs are read, unfinished ones go on from their last checkpoint, and a configuration that cannot be trained
    is an outcome with its reason (it is tried again by the next sweep). A run that another sweep is training is left
    to it, and taken over if that sweep ends without finishing it; so two sweeps of one list share the work, and each
    returns all of it. A killed worker costs its run what came after the last checkpoint, at most 2.5 % of all steps;
    after three deaths without progress the run is given up. Every run has one thread and the threads of a process train
    one after the other, so that the results do not depend on the executor.

    Parameters
    ----------
    configs : iterable of TrainConfig, or dict
        The runs; or a grid: fields of TrainConfig, where a list or a range stands for one run a value and anything else
        for itself. Equal configurations are trained once.
    out : path
        Folder of runs, each in a folder named by the hash of its configuration; the workers must see it too.
    executor : concurrent.futures.Executor, optional
        Where to train, e.g. ``Client(address).get_executor()`` of Dask; left out: spawned processes of this machine,
        replaced when they die and killed when the sweep is stopped (another executor ends the jobs that it has begun,
        and the sweep ends with it if it takes no more, as a ProcessPoolExecutor of which one worker has died).
        A script then needs ``if __name__ == "__main__":``.
    workers : int
        How many spawned processes; without an executor only.
    part : (int, int), optional
        ``(i, n)``: only every n-th run, from the i-th on (1 ≤ i ≤ n): one of n jobs that share the folder.
    device : str
        Where each run is trained.
    progress : callable, optional
        ``progress(standing)``, twice a second and whenever a run ends.

    Returns
    -------
    list of Outcome
        One a configuration (of the part), in their order.

    Raises
    ------
    CollapseError
        If a value of the grid is out of range, the folder cannot be written, or the executor is lost.

    Examples
    --------
    >>> import tempfile
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> grid = {"seed": range(2), "epochs": 2, "hidden": (8,), "feature_dim": 8}
    >>> with tempfile.TemporaryDirectory() as out, ThreadPoolExecutor(1) as pool:
    ...     [outcome.finished for outcome in sweep(grid, out=out, executor=pool)]
    [True, True]
    """
    planned = part_of(configurations(configs), part)
    place = _writable(out)
    with (
        LocalPool(whole_number("workers", workers, 1, "give at least 1")) if executor is None else nullcontext(executor)
    ) as used:
        return _Sweep(planned, place, device, used, progress).outcomes()


def configurations(configs: Iterable[TrainConfig] | Grid) -> list[TrainConfig]:
    """Return the different configurations of a list or grid, in order; the last field of a grid changes fastest."""
    if isinstance(configs, Mapping):
        unknown = set(configs) - {field.name for field in fields(TrainConfig)}
        if unknown:
            raise CollapseError(f"configs: TrainConfig has no {sorted(map(str, unknown))}; give names of its fields")
        for name in set(configs) & {"hidden", "class_names"}:
            values = configs[name]
            if isinstance(values, list) and values and all(isinstance(value, int | str) for value in values):
                raise CollapseError(
                    f"{name}={shorten(values)}: a list holds one value a run; give {shorten([values])} for one run"
                )
        choices = [value if isinstance(value, list | range) else [value] for value in configs.values()]
        if math.prod(map(len, choices)) > MOST_RUNS:
            raise CollapseError(f"configs: more than {MOST_RUNS} combinations; give fewer values, or several grids")
        configs = [TrainConfig(**dict(zip(configs, values, strict=True))) for values in product(*choices)]
    if not isinstance(configs, Iterable):
        raise CollapseError(f"configs={shorten(configs)}: give a list of TrainConfig, or a grid")
    configs = list(configs)
    for config in configs:
        if not isinstance(config, TrainConfig):
            raise CollapseError(f"configs: {shorten(config)} is no TrainConfig; give a list of them, or a grid")
    found = list(dict.fromkeys(configs))
    if not found:
        raise CollapseError("configs: none; give at least one, and at least one value for each field of a grid")
    return found


def part_of(configs: Sequence[TrainConfig], part: tuple[int, int] | None) -> list[TrainConfig]:
    """Return every n-th configuration from the i-th on, for ``part = (i, n)``."""
    try:
        first, step = map(operator.index, (1, 1) if part is None else part)
    except (TypeError, ValueError):
        first, step = 0, 0
    if not 1 <= first <= step:
        raise CollapseError(f"part={shorten(part)}: give (i, n) with 1 ≤ i ≤ n")
    return list(configs[first - 1 :: step])


class _Sweep:
    """What is queued, what is under way and what is over."""

    def __init__(
        self,
        planned: list[TrainConfig],
        out: Path,
        device: str,
        executor: Executor,
        progress: Callable[[Standing], None] | None,
    ) -> None:
        self.planned, self.out, self.device, self.executor, self.progress = planned, out, device, executor, progress
        self.waiting = deque(planned)  # to be submitted, once no other process trains them
        self.pending: dict[Future[str | None], TrainConfig] = {}
        self.over: dict[TrainConfig, Outcome] = {}
        self.deaths, self.reached = dict.fromkeys(planned, 0), dict.fromkeys(planned, 0)
        self.checksums: dict[tuple[Any, ...], tuple[int, int] | None] = {}  # of the data
        self.anew: dict[TrainConfig, str] = {}  # why what is stored is of no use

    def outcomes(self) -> list[Outcome]:
        """Train until every configuration is over."""
        try:
            with interruptible() as heed_interrupt:
                while len(self.over) < len(self.planned):
                    self._submit()
                    self._report()
                    self._settle()
                    heed_interrupt()
        except BaseException:
            for future in self.pending:
                future.cancel()
            raise
        self._report()
        return [self.over[config] for config in self.planned]

    def _submit(self) -> None:
        for _ in range(len(self.waiting)):
            config = self.waiting.popleft()
            if store.in_use(self._folder(config)):
                self.waiting.append(config)
            elif not self._read(config):
                self.pending[submitted(self.executor, train_one, config, str(self.out), self.device)] = config

    def _read(self, config: TrainConfig) -> bool:
        """Whether the run is stored as finished, and so over; one that is damaged is not, and is to be trained anew."""
        if not self._stored(config):
            return False
        try:
            self._require_sound(config)
        except store.Damaged as error:
            self.anew[config] = str(error)
            return False
        except CollapseError as error:
            self._end(config, str(error))
        else:
            self._end(config, None)
        return True

    def _require_sound(self, config: TrainConfig) -> None:
        folder, data = self._folder(config), self._checksum(config)
        if data is not None:
            checkpoint.require_same_data(folder, data, config.data)
        runs.finished_run(folder, config)

    def _checksum(self, config: TrainConfig) -> tuple[int, int] | None:
        """Of the data, as new and as old runs hold it; None if only the workers can read it."""
        key = tuple(getattr(config, name) for name in DATA_FIELDS)
        if key not in self.checksums:
            try:
                split = load_split(config)
                self.checksums[key] = split.checksum, split.training_checksum
            except CollapseError:
                self.checksums[key] = None
        return self.checksums[key]

    def _settle(self) -> None:
        if not self.pending:
            time.sleep(POLL if self.waiting else 0)
        done, _ = wait(self.pending, timeout=POLL, return_when=FIRST_COMPLETED)
        require_connection(self.executor)
        for future in done:
            config = self.pending.pop(future)
            error = BrokenExecutor("the executor dropped it") if future.cancelled() else future.exception()
            if error is not None:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                if worker_died(error):
                    self._try_again(config, str(error) if isinstance(error, BrokenExecutor) else reason)
                else:
                    self._give_up(config, reason)
            elif future.result() == BUSY:
                self.waiting.append(config)
            elif future.result() is not None:
                self._end(config, future.result())
            elif self._stored(config):
                self._end(config, _reason(self._require_sound, config))
            else:
                self._try_again(config, f"finished, but not in {self.out}; give a folder that the workers see too")

    def _try_again(self, config: TrainConfig, reason: str) -> None:
        step = _last_step(self._folder(config))
        if step > self.reached[config]:  # a run that gets on is no danger to workers, however often one is lost
            self.deaths[config], self.reached[config] = 0, step
        self.deaths[config] += 1
        if self.deaths[config] < MOST_DEATHS:
            self.waiting.append(config)
        else:
            self._give_up(config, f"{reason} ({MOST_DEATHS} times in a row)")

    def _give_up(self, config: TrainConfig, reason: str) -> None:
        try:
            _reason(runs.save_failure, self.out, config, reason)  # in a folder of no use the outcome alone has it
        except store.InUse:  # somebody else is at it
            self.waiting.append(config)
        else:
            self._end(config, reason)

    def _end(self, config: TrainConfig, reason: str | None) -> None:
        self.over[config] = Outcome(config, self._folder(config), reason, self.anew.get(config))

    def _stored(self, config: TrainConfig) -> bool:
        return os.path.exists(self._folder(config) / store.ENVIRONMENT)

    def _folder(self, config: TrainConfig) -> Path:
        return self.out / config.fingerprint

    def _report(self) -> None:
        if self.progress is None:
            return
        folders = {config: self._folder(config) for config in self.planned if config not in self.over}
        running = {config: _last_step(folder) for config, folder in folders.items() if store.in_use(folder)}
        self.progress(Standing(tuple(self.over.values()), running, len(self.planned) - len(self.over)))


BUSY: Literal["busy"] = "busy"


def train_one(config: TrainConfig, out: str, device: str) -> str | None:
    """Train in a worker; return why there is no finished run, ``BUSY`` if another process is at it, or None."""
    folder = Path(out) / config.fingerprint
    if store.in_use(folder):
        return BUSY
    with ONE_AT_A_TIME:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            reason = _reason(_train, config, out, device)
            if reason is not None:
                _reason(runs.save_failure, out, config, reason)  # in a folder of no use the outcome alone has it
        except store.InUse:
            return BUSY
        finally:
            torch.set_num_threads(threads)
    return reason


def _train(config: TrainConfig, out: str, device: str) -> None:
    """Go on with a run; train it anew if its files are damaged."""
    files.discard(Path(out) / config.fingerprint / store.FAILURE)
    try:
        train(config, out=out, resume=True, device=device)
    except store.Damaged:
        train(config, out=out, resume=False, device=device)


def _last_step(folder: Path) -> int:
    """The last step in the history; 0 if that cannot be read."""
    with suppress(CollapseError):
        return store.last_step(folder)
    return 0


def _reason(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str | None:
    """Return in one line why the call fails, or None if it does not."""
    try:
        function(*args, **kwargs)
    except store.InUse:
        raise
    except CollapseError as error:
        return str(error)
    except Exception as error:  # a network of the user's own can raise anything
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


def _writable(out: str | os.PathLike[str]) -> Path:
    """The absolute path of the folder, made and tried."""
    try:
        if not os.fspath(out):
            raise ValueError("names no folder")
        place = Path(out).absolute()
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return place
    except (OSError, TypeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CollapseError(f"out={str(out)!r}: {reason}; give a folder that can be written") from None
