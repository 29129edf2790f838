"""Google Cloud Storage on this machine: as much of its JSON API as gcsfs and TensorStore use.

    with gcs_server.start() as server:
        subprocess.run(command, env={**os.environ, **server.environment})
        server.objects["folder/name"]

One bucket, whatever it is called, in memory.
"""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator

PATH = re.compile(r"/(?:(upload|download)/)?storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?")


class Server(http.server.ThreadingHTTPServer):
    """The store.

    Attributes:
      objects: name -> bytes.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, int] = {}
        self.counter = itertools.count(1)
        self.lock = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        """With which a process finds it, and needs no credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        }


@contextlib.contextmanager
def start() -> Iterator[Server]:
    """A server that runs until the context is left."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        action, _, name = self._asked()
        if name is None:
            self._reply(200, self._listing() if "/o" in self.path else {"kind": "storage#bucket"})
        elif name not in self.server.objects:
            self._reply(404, {"error": {"code": 404, "message": "No such object"}})
        elif action == "download" or self.query.get("alt") == "media":
            self._send_content(name)
        else:
            self._reply(200, self._about(name))

    def do_POST(self):
        action, bucket, _ = self._asked()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if action != "upload":
            self._reply(404, {})
        elif "upload_id" in self.query:
            self._store(self.query["upload_id"], body)
        elif self.query["uploadType"] == "resumable":
            name = self.query.get("name") or json.loads(body)["name"]
            upload = urllib.parse.urlencode({"uploadType": "resumable", "upload_id": name})
            where = f"{self.server.url}/upload/storage/v1/b/{bucket}/o?{upload}"
            self._reply(200, {}, {"Location": where})
        elif self.query["uploadType"] == "media":
            self._store(self.query["name"], body)
        else:
            name, content = self._parts(body)
            self._store(name, content)

    def do_DELETE(self):
        _, _, name = self._asked()
        found = self.server.objects.pop(name, None)
        self._reply(404 if found is None else 204)

    def _asked(self) -> tuple[str | None, str, str | None]:
        """Of the request: what is done, with which bucket and object."""
        parsed = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(parsed.query))
        action, bucket, name = PATH.fullmatch(parsed.path).groups()
        return action, bucket, name and urllib.parse.unquote(name)

    def _parts(self, body: bytes) -> tuple[str, bytes]:
        """Name and content of an upload in two parts, a description and the content."""
        boundary = re.search(r"boundary=['\"]?([^'\";]+)", self.headers["Content-Type"])[1]
        _, about, content, _ = body.split(b"--" + boundary.encode())
        about, content = (
            re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (about, content)
        )
        return json.loads(about)["name"], content.removesuffix(b"\n").removesuffix(b"\r")

    def _store(self, name: str, content: bytes) -> None:
        with self.server.lock:
            known = self.server.generations.get(name, 0) if name in self.server.objects else 0
            wanted = self.query.get("ifGenerationMatch")
            if wanted is None or int(wanted) == known:
                self.server.objects[name] = content
                self.server.generations[name] = next(self.server.counter)
                self._reply(200, self._about(name))
            else:
                self._reply(412, {"error": {"code": 412, "message": "conditionNotMet"}})

    def _send_content(self, name: str) -> None:
        content = self.server.objects[name]
        headers = {"x-goog-generation": str(self.server.generations[name])}
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            self._reply(200, content, headers)
            return
        first, last = (int(x) if x else None for x in span.groups())
        if first is None:
            first, last = max(0, len(content) - last), None
        end = len(content) if last is None else min(last + 1, len(content))
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
        self._reply(206, content[first:end], headers)

    def _listing(self) -> dict:
        prefix, delimiter = (self.query.get(name, "") for name in ("prefix", "delimiter"))
        items, folders = [], set()
        for name in sorted(n for n in list(self.server.objects) if n.startswith(prefix)):
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(self._about(name))
        return {"items": items, "prefixes": sorted(folders)}

    def _about(self, name: str) -> dict[str, str]:
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": "bucket",
            "size": str(len(self.server.objects[name])),
            "generation": str(self.server.generations[name]),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }

    def _reply(self, code: int, body: dict | bytes = b"", headers: dict[str, str] | None = None):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        self.send_response(code)
        for name, value in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
