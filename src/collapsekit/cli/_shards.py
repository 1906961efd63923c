"""Features in many files: how `measure` is told of them, and what it shows meanwhile."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from collapsekit import CollapseError
from collapsekit.cli._console import progress
from collapsekit.cli._reading import Reading
from collapsekit.data.files import MAX_BYTES
from collapsekit.data.shards import ENDINGS
from collapsekit.losses import Loss
from collapsekit.metrics import Measurement, measure_shards
from collapsekit.pool import cluster


@dataclass(frozen=True, kw_only=True)
class Shards:
    """How features in many files are read.

    Attributes
    ----------
    labels : str
        Array or column of the labels, where features lie in several files; by default labels or y.
    scheduler : str
        Address of a Dask scheduler, e.g. tcp://10.0.0.1:8786, to measure there; its workers must see the files.
    """

    labels: str | None = None
    scheduler: str | None = None

    def wanted(self, paths: Sequence[Path]) -> bool:
        """Return whether these are files to be read block by block, not one that is read as a whole."""
        given = len(paths) > 1 or self.labels is not None or self.scheduler is not None
        return given or _is_many(paths[0])

    def measured(
        self, paths: Sequence[Path], head: str | None, reading: Reading, loss: Callable[[Any], Loss]
    ) -> Measurement:
        """Return the measurement of all files together."""
        for flag, value in (("label-column", reading.label_column), ("delimiter", reading.delimiter)):
            if value is not None:
                raise CollapseError(f"--{flag}={value!r}: is for one table; of several files give --labels NAME")
        with cluster(self.scheduler) as executor, progress("Measuring:") as advance:
            measured = measure_shards(
                paths,
                head,
                executor,
                labels=self.labels,
                names=reading.class_names,
                loss=loss,
                progress=lambda done, total: advance(done, total, "files"),
            )
        return replace(measured, names=measured.names or tuple(map(str, range(len(measured.counts)))))


def _is_many(path: Path) -> bool:
    if not os.path.lexists(path):
        return glob.has_magic(str(path))
    return path.is_dir() or (path.suffix.lower() in ENDINGS and path.stat().st_size > MAX_BYTES)
