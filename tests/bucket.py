"""A stand-in for a remote store: gs://bucket, in memory."""

from __future__ import annotations

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    """gs:// in memory: strips the scheme as the real one does, has no empty folders, and shows a
    folder as it was when first listed, unless that is switched off where fsspec has its settings.
    """

    store = {}  # noqa: RUF012  the base class has it so
    pseudo_dirs = [""]  # noqa: RUF012
    protocol = "gs"

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol("memory://" + path.removeprefix("gs://"))

    def mkdir(self, path, create_parents=True, **kwargs):
        pass

    def makedirs(self, path, exist_ok=False):
        pass

    def ls(self, path, detail=True, **kwargs):
        path = self._strip_protocol(path)
        found = self.dircache[path] if path in self.dircache else super().ls(path, detail=True)
        self.dircache[path] = found
        return found if detail else [entry["name"] for entry in found]


def mount(monkeypatch) -> Bucket:
    """An empty store that etils.epath takes for gs://, until the test is over."""
    from etils.epath import backend, gpath

    Bucket.clear_instance_cache()
    Bucket.store.clear()
    monkeypatch.setattr(fsspec.config, "conf", {})
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: Bucket(), raising=False)
    return Bucket()
