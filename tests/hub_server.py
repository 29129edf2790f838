"""A Hugging Face hub on this machine, with as much of its protocol as huggingface_hub needs.

It takes commits too, from the bearers of the tokens in `writers`.

Small files are answered at once. Weights are, as on the real hub, a redirection to another host
that carries their size and hash, so that the library's way of fetching large files is what runs.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import json
import threading
from urllib.parse import unquote, urlsplit

_STORED_ELSEWHERE = (".safetensors", ".bin", ".h5", ".msgpack", ".pt")


@dataclasses.dataclass
class Repository:
    """Attributes:
    commits: sha -> file name -> content.
    refs: branch or tag -> sha.
    token: needed to see it; None if public.
    gated: whether nobody may read it.
    """

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    token: str | None = None
    gated: bool = False


def commit_hash(name: str) -> str:
    """40 hexadecimal digits, as git has them."""
    return hashlib.sha1(name.encode()).hexdigest()


def repository(files: dict[str, bytes], **options) -> Repository:
    """One of a single commit, on the branch main."""
    return Repository({commit_hash("main"): files}, {"main": commit_hash("main")}, **options)


class Hub(http.server.ThreadingHTTPServer):
    """Attributes:
    repositories: id -> Repository; may be changed at any time.
    requests: (method, path) of each request so far.
    writers: token -> organisation that its bearer may write to.
    cut: names of files of which only the first half is sent before the connection closes; when
      asked again, the hub fails with status 503.
    short: names of files of which only the first half is sent, as if it were all.
    broken: whether every request fails with status 500.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.writers: dict[str, str] = {}
        self.cut: set[str] = set()
        self.short: set[str] = set()
        self.broken = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for, one for each time."""
        asked = (path for method, path in self.requests if method == "GET")
        return sorted(path.rsplit("/", 1)[1] for path in asked if not path.startswith("/api/"))


@contextlib.contextmanager
def running():
    """A hub that listens until the block ends; port and all sockets are then closed."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        """Makes repositories and branches, and takes commits, whose files come with them."""
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, path))
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = [unquote(part) for part in path.strip("/").split("/")]
        namespace = self.server.writers.get(
            (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        )
        if self.server.broken:
            return self._refuse(500, "", "something is broken")
        if namespace is None:
            return self._refuse(401, "", "Invalid username or password.")
        if parts == ["api", "repos", "create"]:
            asked = json.loads(content)
            repo_id = f"{asked.get('organization') or namespace}/{asked['name']}"
        else:
            repo_id = "/".join(parts[2:4])
        if repo_id.split("/")[0] != namespace:
            return self._refuse(403, "", "You don't have the rights to create this model.")
        if parts == ["api", "repos", "create"]:
            answer = {"url": f"{self.server.url}/{repo_id}"}
            exists = repo_id in self.server.repositories
            if not exists:
                self.server.repositories[repo_id] = repository({})
            return self._answer_json(answer, status=409 if exists else 200)
        refs = self.server.repositories[repo_id].refs
        kind, revision = parts[4:6]
        if kind == "branch":
            refs[revision] = refs["main"]
            return self._answer_json({})
        if kind == "preupload":
            files = [{**file, "uploadMode": "regular"} for file in json.loads(content)["files"]]
            return self._answer_json({"files": [{**f, "shouldIgnore": False} for f in files]})
        return self._commit(repo_id, revision, list(map(json.loads, content.splitlines())))

    def _commit(self, repo_id, revision, lines):
        found = self.server.repositories[repo_id]
        summary = next(line["value"]["summary"] for line in lines if line["key"] == "header")
        files = dict(found.commits[found.refs[revision]])
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        sha = commit_hash(f"{summary} {len(found.commits)}")
        found.commits[sha] = files
        answer = {"commitUrl": f"{self.server.url}/{repo_id}/commit/{sha}", "commitOid": sha}
        if "create_pr=1" in urlsplit(self.path).query:
            answer["pullRequestUrl"] = f"{self.server.url}/{repo_id}/discussions/1"
            found.refs["refs/pr/1"] = sha
        else:
            found.refs[revision] = sha
        self._answer_json(answer)

    def _answer_json(self, answer, status=200):
        self._answer(status, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, path))
        if self.server.broken:
            return self._refuse(500, "", "something is broken")
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[0] == "elsewhere":
            return self._send_content(*parts[1:])
        if parts[:2] == ["api", "models"]:
            repo_id, revision = "/".join(parts[2:4]), parts[5] if parts[5:] else "main"
        elif parts[2:3] == ["resolve"]:
            repo_id, revision = "/".join(parts[:2]), parts[3]
        else:
            return self._refuse(404, "", "No such page")
        found = self.server.repositories.get(repo_id)
        authorization = self.headers.get("Authorization")
        if authorization == "Bearer hf_revoked":
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        if found is None or (found.token and authorization != f"Bearer {found.token}"):
            return self._refuse(401, "RepoNotFound", "Repository not found")
        sha = found.refs.get(revision, revision)
        if sha not in found.commits:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = found.commits[sha]
        if parts[0] == "api":
            listing = {
                "id": repo_id,
                "sha": sha,
                "siblings": [{"rfilename": name} for name in files],
            }
            content = json.dumps(listing).encode()
            return self._answer(200, {"Content-Type": "application/json"}, content)
        if found.gated:  # as on the real hub: seen by all, read by few
            return self._refuse(403, "GatedRepo", "Access to this model is restricted")
        filename = "/".join(parts[4:])
        if filename not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
        self._send_file(repo_id, sha, filename, files[filename])

    def _send_file(self, repo_id, sha, filename, content):
        headers = {"X-Repo-Commit": sha}
        if not filename.endswith(_STORED_ELSEWHERE):
            headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
            return self._answer(200, headers, content)
        organisation, name = repo_id.split("/")
        path = f"elsewhere/{organisation}/{name}/{sha}/{filename}"
        headers["Location"] = f"http://localhost:{self.server.server_port}/{path}"
        headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        headers["X-Linked-Size"] = str(len(content))
        return self._answer(302, headers, b"")

    def _send_content(self, organisation, name, sha, filename):
        content = self.server.repositories[f"{organisation}/{name}"].commits[sha][filename]
        half = content[: len(content) // 2]
        if filename in self.server.short:
            return self._answer(200, {}, half)
        if filename not in self.server.cut:
            return self._answer(200, {}, content)
        if self.server.requests.count(("GET", self.path)) > 1:
            return self._refuse(503, "", "down")
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(half)
        self.close_connection = True

    def _refuse(self, status, code, message, headers=()):
        headers = {**dict(headers), "X-Error-Code": code, "X-Error-Message": message}
        self._answer(status, headers, b"")

    def _answer(self, status, headers, content):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
