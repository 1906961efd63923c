"""Files: written whole under a temporary name and renamed, read only where they are files, never through a link."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from collapsekit.errors import CollapseError

KINDS = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a symbolic link"}


def replace(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    The mode of an old file is kept. What processes killed while they wrote this file have left is removed.

    Raises
    ------
    CollapseError
        If the file cannot be written, or something that is no regular file has its name.

    Examples
    --------
    >>> replace(Path("/dev/null"), "page")
    Traceback (most recent call last):
    ...
    collapsekit.errors.CollapseError: out: /dev/null is a device, pipe or socket; give the name of a file
    """
    if isinstance(content, str):
        content = content.encode("utf-8", errors="backslashreplace")  # a path may hold bytes outside UTF-8
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    mode = None
    with writing(path):
        with suppress(FileNotFoundError):
            mode = path.lstat().st_mode
        if mode is not None and not stat.S_ISREG(mode):
            what = KINDS.get(stat.S_IFMT(mode), "a device, pipe or socket")
            raise CollapseError(f"out: {path} is {what}; give the name of a file")
        _tidy(path)
        try:
            with opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
                with suppress(OSError):  # a file system without locks: then nothing is tidied there
                    fcntl.flock(file, fcntl.LOCK_EX)  # ends with the process, so that _tidy knows what is left over
                file.write(content)
                file.flush()
                if mode is not None:
                    os.fchmod(file.fileno(), stat.S_IMODE(mode))
                os.fsync(file.fileno())
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def append(path: Path, line: str) -> None:
    """Add a line of text to a file."""
    with writing(path), opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW) as file:
        file.write(line.encode() + b"\n")


def discard(path: Path) -> None:
    """Remove a file, if it is there."""
    with writing(path):
        path.unlink(missing_ok=True)


def read(path: Path) -> bytes:
    """Return what a regular file holds; anything else is an OSError."""
    with opened(path, os.O_RDONLY) as file:
        return file.read()


@contextmanager
def opened(path: Path, flags: int) -> Iterator[IO[bytes]]:
    """Open a regular file as `os.open` does, never waiting for the other end of a pipe; anything else is an OSError."""
    mode = "rb" if flags & os.O_ACCMODE == os.O_RDONLY else "wb"
    with open(path, mode, opener=lambda name, _: os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "no regular file")
        yield file


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk, a missing permission and the like into one line that names the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise CollapseError(f"out: {path} cannot be written ({reason}); free space or give another folder") from None


def _tidy(path: Path) -> None:
    """Remove temporary files of this file's name whose writers are no more."""
    for name in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
        with suppress(OSError), opened(name, os.O_RDONLY | os.O_NOFOLLOW) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            name.unlink()
