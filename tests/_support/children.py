"""What runs in processes of its own, to be killed or starved there."""

import multiprocessing
import os
import resource
from pathlib import Path

from collapsekit import files
from collapsekit.report import report
from collapsekit.training import store, train

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["collapsekit.report", "collapsekit.training"])  # its path has no tests


def start(function, *arguments):
    process = CONTEXT.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def resume(config, out, told=None, limit=None):
    """Train, or go on; write the report. Failures that a user would see go to the file `told`, one line each."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        report(train(config, out=out, resume=True))
    except Exception as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        Path(told).write_text(f"{type(error).__name__}: {error}\n")
        os._exit(2)


def checkpoints(folder, begun):
    """Write a run's checkpoint over and over."""
    tensors = store.read_tensors(folder / store.CHECKPOINT)
    while True:
        store.replace_tensors(folder / store.CHECKPOINT, tensors)
        begun.touch()


def pages(folder, begun):
    """Write a run's page over and over."""
    content = (folder / "report.html").read_bytes()
    while True:
        files.replace(folder / "report.html", content)
        begun.touch()
