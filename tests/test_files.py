"""What is written is whole or not there, and only regular files are touched."""

import os
import stat

import pytest

from collapsekit import CollapseError, files


def test_a_file_is_replaced_with_its_mode_and_without_its_other_names(tmp_path):
    page, other = tmp_path / "page", tmp_path / "other"
    page.write_text("old")
    page.chmod(0o600)
    os.link(page, other)
    files.replace(page, "new")
    assert page.read_text() == "new"
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert other.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "page"]


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    dead, swap = tmp_path / ".page.12345678.tmp", tmp_path / ".page.swp"
    for path in (dead, swap):
        path.touch()
    with files.opened(tmp_path / ".page.abcdef01.tmp", os.O_WRONLY | os.O_CREAT) as alive:
        files.fcntl.flock(alive, files.fcntl.LOCK_EX)
        files.replace(tmp_path / "page", "new")
        assert sorted(path.name for path in tmp_path.iterdir()) == [".page.abcdef01.tmp", ".page.swp", "page"]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_nothing_but_a_regular_file_is_replaced_or_added_to(tmp_path, kind):
    path = tmp_path / "page"
    (tmp_path / "victim").write_text("precious")
    {"link": lambda: path.symlink_to("victim"), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    for write in (files.replace, files.append):
        with pytest.raises(CollapseError, match=r"page (is|cannot be written)"):
            write(path, "new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        files.read(tmp_path / "pipe")
