"""A stand-in for the Hub on this machine: enough of its HTTP interface to push a repository and load it back."""

import base64
import hashlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """
    Repositories as `{repo: {path: bytes}}`; a commit replaces what it names. Weights go through LFS, the rest inline.

    `faults` maps the beginning of a request ("PUT /lfs") to a list of what befalls the next ones: a status to answer,
    "drop" to break the connection off, or "half" to do so in the middle of the answer.
    """

    TOKEN = "hf_stand_in"

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.pull_requests: list[dict[str, bytes]] = []
        self.blobs: dict[str, bytes] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.faults: dict[str, list[int | str]] = {}
        self.requests: list[str] = []
        self.ranges: list[str] = []
        handler = type("Handler", (HubHandler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def environment(self, home) -> dict[str, str]:
        """What a process needs to take this for the Hub."""
        return {
            "HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_TOKEN": self.TOKEN, "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip

    def revision(self, repo: str) -> str:
        digest = hashlib.sha1()
        for path, content in sorted(self.repositories[repo].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()

    def close(self) -> None:
        self.server.shutdown()


def entry(path: str, content: bytes) -> dict:
    """A file in a listing: Git's digest, and for large files that of LFS."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found = {"type": "file", "path": path, "size": len(content), "oid": git}
    if path.endswith((".bin", ".safetensors", ".model")):
        found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return found


class HubHandler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    is_cut = False

    def reply(self, body: object = None, status: int = 200, content: bytes | None = None, **headers: str) -> None:
        content = json.dumps(body).encode() if content is None else content
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.is_cut else content)
        if self.is_cut:
            self.break_off()

    def break_off(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def fails(self, path: str) -> bool:
        """Notes the request, and lets the next fault befall it that was asked for."""
        request = f"{self.command} {path}"
        self.is_cut = False
        self.hub.requests.append(request)
        for beginning, faults in self.hub.faults.items():
            if faults and request.startswith(beginning):
                if (fault := faults.pop(0)) == "drop":
                    self.break_off()
                elif fault == "half":
                    self.is_cut = True
                    return False
                else:
                    self.reply({"error": "injected"}, fault)
                return True
        return False

    def knows_token(self) -> bool:
        known = self.headers.get("Authorization") == f"Bearer {self.hub.TOKEN}"
        if not known:
            self.reply({"error": "Invalid username or password."}, 401)
        return known

    def do_PUT(self):
        path, body = urlsplit(self.path).path, self.body()
        if not self.fails(path):
            self.hub.blobs[path.removeprefix("/lfs/")] = body
            self.reply({})

    def commit(self, repo: str, body: bytes) -> dict[str, bytes]:
        """The repository's files after a commit."""
        files = dict(self.hub.repositories[repo])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        return files

    def do_POST(self):
        path, body = urlsplit(self.path).path, self.body()
        if self.fails(path):
            return None
        if path.endswith("/api/validate-yaml"):
            return self.reply({"errors": [], "warnings": []})
        if not self.knows_token():
            return None
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'owner'}/{asked['name']}"
            self.hub.repositories.setdefault(repo, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(repo)
            self.reply({"url": f"{self.hub.endpoint}/{repo}", "name": repo, "id": repo})
        elif (match := re.match(r"/(?:api/models/)?([^/]+/[^/.]+)", path)) and match[1] in self.hub.gated:
            self.reply({"error": "Access is restricted."}, 403, X_Error_Code="GatedRepo")
        elif re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/.+", path):
            modes = {
                file["path"]: "lfs" if file["path"].endswith(".safetensors") else "regular"
                for file in json.loads(body)["files"]
            }
            files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
            self.reply({"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for asked in objects:
                if asked["oid"] not in self.hub.blobs:
                    asked["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{asked['oid']}"}}
            self.reply({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/.+", path):
            files = self.commit(match[1], body)
            if "create_pr=1" in self.path:
                self.hub.pull_requests.append(files)
                links = {
                    "commitUrl": f"{self.hub.endpoint}/{match[1]}/commit/{'0' * 40}",
                    "pullRequestUrl": f"{self.hub.endpoint}/{match[1]}/discussions/1",
                }
                return self.reply({**links, "commitOid": "0" * 40, "success": True})
            self.hub.repositories[match[1]] = files
            commit = self.hub.revision(match[1])
            self.hub.commits[commit] = files
            url = f"{self.hub.endpoint}/{match[1]}/commit/{commit}"
            self.reply({"commitUrl": url, "commitOid": commit, "success": True})
        else:
            self.reply({"error": "not found"}, 404)
        return None

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if self.fails(path):
            return None
        if path == "/api/whoami-v2":
            return self.knows_token() and self.reply({"name": "owner", "type": "user", "orgs": []})
        match = re.match(r"(?:/api/models)?/([^/]+/[^/]+)(?:/(resolve|tree|revision)/([^/]+)/?(.*))?$", path)
        repo, kind, file = (match[1], match[2], match[4]) if match else (None, None, None)
        if repo not in self.hub.repositories:
            return self.reply({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        if repo in self.hub.gated and kind:
            return self.reply({"error": "Access is restricted."}, 403, X_Error_Code="GatedRepo")
        commit = match[3] if match[3] in self.hub.commits else self.hub.revision(repo)
        files = self.hub.commits.get(commit, self.hub.repositories[repo])
        if kind == "resolve" and file in files:
            return self.send_file(files[file], commit)
        if kind == "resolve":
            return self.reply({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        if kind == "tree":
            found = [entry(path, content) for path, content in files.items() if path.startswith(file)]
            if not found and file:
                return self.reply({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            return self.reply(found)
        return self.reply({"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files], "tags": []})

    do_HEAD = do_GET  # noqa: N815

    def send_file(self, content: bytes, commit: str) -> None:
        """A file, from the byte on that was asked for."""
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X_Repo_Commit": commit}
        if (asked := self.headers.get("Range")) is None:
            return self.reply(content=content, **headers)
        self.hub.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").partition("-")[0])
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.reply(content=content[start:], status=206, Content_Range=span, **headers)

    def log_message(self, *args):
        pass
