"""A stand-in for the Hub on this machine: enough of its HTTP interface to push a repository and load it back."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories as `{repo: {path: bytes}}`. Every file is taken inline; each commit replaces what it names."""

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        handler = type("Handler", (HubHandler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def environment(self, home) -> dict[str, str]:
        """What a process needs to take this for the Hub."""
        return {
            "HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_stand_in", "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip

    def revision(self, repo: str) -> str:
        digest = hashlib.sha1()
        for path, content in sorted(self.repositories[repo].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()

    def close(self) -> None:
        self.server.shutdown()


class HubHandler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def reply(self, body: object = None, status: int = 200, content: bytes | None = None, **headers: str) -> None:
        content = json.dumps(body).encode() if content is None else content
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        path, body = urlsplit(self.path).path, self.body()
        self.hub.requests.append(f"POST {path}")
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'owner'}/{asked['name']}"
            self.hub.repositories.setdefault(repo, {})
            self.reply({"url": f"{self.hub.endpoint}/{repo}", "name": repo, "id": repo})
        elif path.endswith("/api/validate-yaml"):
            self.reply({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/.+", path):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.reply({"files": files})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/.+", path):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    self.hub.repositories[match[1]][value["path"]] = base64.b64decode(value["content"])
            commit = self.hub.revision(match[1])
            url = f"{self.hub.endpoint}/{match[1]}/commit/{commit}"
            self.reply({"commitUrl": url, "commitOid": commit, "success": True})
        else:
            self.reply({"error": "not found"}, 404)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if path == "/api/whoami-v2":
            return self.reply({"name": "owner", "type": "user", "orgs": []})
        match = re.match(r"(?:/api/models)?/([^/]+/[^/]+)(?:/(resolve|tree|revision)/([^/]+)/?(.*))?$", path)
        repo, kind, file = (match[1], match[2], match[4]) if match else (None, None, None)
        if repo not in self.hub.repositories:
            return self.reply({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        files, commit = self.hub.repositories[repo], self.hub.revision(repo)
        if kind == "resolve" and file in files:
            tag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
            return self.reply(content=files[file], ETag=tag, X_Repo_Commit=commit)
        if kind == "resolve":
            return self.reply({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        if kind == "tree":
            found = [
                {"type": "file", "path": p, "size": len(c), "oid": "0"} for p, c in files.items() if p.startswith(file)
            ]
            if not found:
                return self.reply({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            return self.reply(found)
        return self.reply({"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files], "tags": []})

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args):
        pass
