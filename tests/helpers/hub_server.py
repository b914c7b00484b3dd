"""A server on the loopback that speaks as much of the Hub's HTTP as one push and one download of a model need."""

import base64
import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

TOKEN = "hf_" + "tokenForTheLoopback" * 2


class Server(ThreadingHTTPServer):
    def handle_error(self, *where) -> None:
        """Say what went wrong here; that a client has gone, such as a process that was asked to end, is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*where)


class Hub:
    """Repositories in memory, behind `url`.

    Attributes:
        repos: the commits of each repository, oldest first: message, and files by path.
        refuse: called with how often a request was made by now; true answers 503.
        forbid: answer every request that writes with 403.
        gate: answer every request that reads with 403, as the Hub does where a model's owner must be asked first.
        jobs: Hugging Face Jobs that were asked for, each with an id and a stage.
        requests: what was asked, such as "POST /api/repos/create", refused or not.
    """

    def __init__(self, refuse=lambda number: False):
        self.repos: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cards: list[str] = []
        self.jobs: list[dict] = []
        self.refuse, self.forbid, self.gate = refuse, False, False
        self.lock = threading.Lock()
        self.server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo: str) -> dict[str, bytes]:
        return self.repos[repo][-1][1]


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status: int, body: bytes | dict | list = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_any(self) -> None:
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path}")
            number = self.hub.requests.count(self.hub.requests[-1])
        if self.hub.refuse(number):
            return self.answer(503, b"busy")
        writes = self.command in ("POST", "PUT")
        if writes and not path.startswith("/objects") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "who are you?"})
        if writes and self.hub.forbid:
            return self.answer(403, {"error": "not yours"})
        if self.hub.gate and not writes:
            return self.answer(403, {"error": "ask first"}, X_Error_Code="GatedRepo")
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return method(self, body, *match.groups())
        return self.answer(404, {"error": f"no {path}"}, X_Error_Code="RepoNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def create(self, body):
        asked = json.loads(body)
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        if name in self.hub.repos:
            return self.answer(409, {"error": "there already", "url": f"{self.hub.url}/{name}"})
        self.hub.repos[name] = [("first", {})]
        self.hub.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
        return self.answer(200, {"url": f"{self.hub.url}/{name}"})

    def validate(self, body):
        self.hub.cards.append(json.loads(body)["content"])
        return self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, body, repo):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return self.answer(200, {"files": files})

    def batch(self, body, repo):
        objects = [
            {
                **asked,
                "actions": {
                    "upload": {"href": f"{self.hub.url}/objects/{asked['oid']}"},
                    "verify": {"href": f"{self.hub.url}/verify"},
                },
            }
            for asked in json.loads(body)["objects"]
        ]
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def put(self, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        return self.answer(200)

    def verify(self, body):
        return self.answer(200 if json.loads(body)["oid"] in self.hub.objects else 404, {})

    def commit(self, body, repo):
        files, message = dict(self.hub.files(repo)), ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.hub.repos[repo].append((message, files))
        sha = f"{len(self.hub.repos[repo]) - 1:040x}"
        url = f"{self.hub.url}/{repo}/commit/{sha}"
        return self.answer(200, {"success": True, "commitOid": sha, "commitUrl": url})

    def revision(self, body, repo):
        commits = self.hub.repos.get(repo)
        if commits is None:
            return self.answer(404, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
        siblings = [{"rfilename": path} for path in commits[-1][1]]
        return self.answer(200, {"id": repo, "sha": f"{len(commits) - 1:040x}", "siblings": siblings})

    def tree(self, body, repo):
        files = self.hub.files(repo)
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in files.items()
        ]
        return self.answer(200, entries)

    def resolve(self, body, repo, path):
        if repo not in self.hub.repos:
            return self.answer(404, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
        files = self.hub.files(repo)
        if path not in files:
            return self.answer(404, {"error": "no such file"}, X_Error_Code="EntryNotFound")
        sha = f"{len(self.hub.repos[repo]) - 1:040x}"
        etag = hashlib.sha256(files[path]).hexdigest()
        return self.answer(200, files[path], ETag=f'"{etag}"', X_Repo_Commit=sha)

    def whoami(self, body):
        return self.answer(200, {"name": "user", "type": "user", "orgs": []})

    def run_job(self, body, namespace):
        job = json.loads(body) | {"id": f"job{len(self.hub.jobs)}", "status": {"stage": "SCHEDULING"}}
        job["owner"] = {"id": "1", "name": namespace, "type": "user"}
        self.hub.jobs.append(job)
        return self.answer(200, job)

    def list_jobs(self, body, namespace):
        asked = parse_qs(self.path.partition("?")[2])
        wanted = dict(label.split("=", 1) for label in asked.get("label", []))
        jobs = [
            job
            for job in self.hub.jobs
            if job["status"]["stage"] in asked["stage"] and wanted.items() <= job["labels"].items()
        ]
        return self.answer(200, jobs)


ROUTES = (
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/jobs/([^/]+)", Handler.run_job),
    (r"GET /api/jobs/([^/]+)", Handler.list_jobs),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate),
    (r"POST /api/(?:models|spaces)/(.+)/preupload/[^/]+", Handler.preupload),
    (r"POST /(.+)\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /objects/(\w+)", Handler.put),
    (r"POST /verify", Handler.verify),
    (r"POST /api/(?:models|spaces)/(.+)/commit/[^/]+", Handler.commit),
    (r"GET /api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", Handler.revision),
    (r"GET /api/models/([^/]+/[^/]+)/tree/[^/]+", Handler.tree),
    (r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/[^/]+/(.+)", Handler.resolve),
)
