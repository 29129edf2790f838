"""Files that grow by records: kills, full disks, remote stores."""

from __future__ import annotations

import errno
import os
import threading

import pytest
from bucket import mount

from vmae_jax.files import appended_file
from vmae_jax.files.appended_file import AppendedFile, read_if_there


@pytest.fixture
def full_disk(monkeypatch):
    """A dict whose "room" is how many bytes may still be written; None: all."""
    disk, write = {"room": None}, os.write

    def limited(descriptor, data):
        if disk["room"] is None:
            return write(descriptor, data)
        if disk["room"] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(descriptor, data[: disk["room"]])
        disk["room"] -= written
        return written

    monkeypatch.setattr(appended_file.os, "write", limited)
    return disk


def test_records_go_on_where_the_file_ends(tmp_path):
    path = tmp_path / "folder" / "file"
    for start in (lambda old: old, lambda old: old[:2]):
        file = AppendedFile(path, start=start)
        file.append(b"a\n")
        file.append(b"b\n")
        assert path.read_bytes().endswith(b"b\n")  # before it is closed
        file.close()
    assert path.read_bytes() == b"a\na\nb\n"
    assert os.listdir(path.parent) == ["file"]


def test_a_full_disk_costs_no_record(tmp_path, full_disk, caplog):
    file = AppendedFile(tmp_path / "file")
    file.append(b"first\n")
    full_disk["room"] = 3
    file.append(b"second\n")  # of which 3 bytes fit
    assert (tmp_path / "file").read_bytes() == b"first\n"
    file.append(b"third\n")
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'file'} cannot be written ([Errno 28] No space left on device); it will be "
        "tried again with each record"
    ]
    full_disk["room"] = None
    file.append(b"fourth\n")
    file.append(b"fifth\n")
    assert (tmp_path / "file").read_bytes() == b"first\nsecond\nthird\nfourth\nfifth\n"
    full_disk["room"] = 0
    file.append(b"sixth\n")
    assert len(caplog.records) == 2  # a new trouble
    full_disk["room"] = None
    file.close()
    assert (tmp_path / "file").read_bytes().endswith(b"sixth\n")


def test_remote_files_are_copied_up_as_a_whole(monkeypatch):
    files = mount(monkeypatch)
    now = [0.0]
    monkeypatch.setattr(appended_file.time, "monotonic", lambda: now[0])
    path = "gs://bucket/run/file"
    files.pipe(path, b"old\nbroken")
    file = AppendedFile(path, start=lambda old: old[:4])
    file.append(b"a\n")
    assert read_if_there(path) == b"old\nbroken"  # not yet
    now[0] += 31
    file.append(b"b\n")
    file._copying.join()
    assert read_if_there(path) == b"old\na\nb\n"
    file.append(b"c\n")
    assert read_if_there(path) == b"old\na\nb\n"  # not again so soon
    file.close()
    assert read_if_there(path) == b"old\na\nb\nc\n"


def test_a_store_that_cannot_be_reached_costs_no_record(monkeypatch, caplog):
    files = mount(monkeypatch)
    monkeypatch.setattr(appended_file, "COPY_EVERY", 0.0)
    write = appended_file.write_bytes

    def unreachable(path, data):
        if path.startswith("gs://"):
            raise RuntimeError("503 try later")
        write(path, data)

    monkeypatch.setattr(appended_file, "write_bytes", unreachable)
    path = "gs://bucket/run/file"
    file = AppendedFile(path)
    for record in (b"a\n", b"b\n"):
        file.append(record)
        file._copying.join()
    assert "503 try later" in caplog.text
    assert not files.exists(path)
    monkeypatch.setattr(appended_file, "write_bytes", write)
    file.append(b"c\n")
    file.close()
    assert read_if_there(path) == b"a\nb\nc\n"


def test_a_slow_store_does_not_hold_up_the_caller(monkeypatch):
    mount(monkeypatch)
    monkeypatch.setattr(appended_file, "COPY_EVERY", 0.0)
    write = appended_file.write_bytes

    may_end, written = threading.Event(), []

    def slow(path, data):
        if path.startswith("gs://"):
            may_end.wait(20)
            written.append(data)
        write(path, data)

    monkeypatch.setattr(appended_file, "write_bytes", slow)
    file = AppendedFile("gs://bucket/run/file")
    for _ in range(10):
        file.append(b"a\n")
        assert written == []
    may_end.set()
    file.close()
    assert read_if_there("gs://bucket/run/file") == 10 * b"a\n"


def test_a_file_that_cannot_be_read_at_the_start_is_an_error(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        AppendedFile(tmp_path / "file")
