"""A stand-in for a remote store: gs://bucket, in memory."""

from __future__ import annotations

from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    """gs:// in memory; strips the scheme as the real one does."""

    store = {}  # noqa: RUF012  the base class has it so
    pseudo_dirs = [""]  # noqa: RUF012
    protocol = "gs"

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol("memory://" + path.removeprefix("gs://"))


def mount(monkeypatch) -> Bucket:
    """An empty store that etils.epath takes for gs://, until the test is over."""
    from etils.epath import backend, gpath

    files = Bucket()
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: files, raising=False)
    return files
