"""Contents: LFS uploads, files by revision with byte ranges, and the content network of another origin."""

import hashlib
import re
import threading
from pathlib import Path

from api import ApiHandler
from store import Refusal


class FileHandler(ApiHandler):
    """Answers that carry files."""

    def lfs_batch(self, repo: str) -> None:
        stored = self.writable(repo)
        objects = []
        for wanted in self.json_body()["objects"]:
            answer = dict(wanted)
            if self.known_large_file(stored, wanted["oid"]) is None:
                answer["actions"] = {"upload": {"href": f"{self.endpoint()}/_lfs/{repo}/{wanted['oid']}"}}
            objects.append(answer)
        self.reply({"transfer": "basic", "objects": objects})

    def lfs_put(self, repo: str, oid: str) -> None:
        size, digest = int(self.headers.get("Content-Length") or 0), hashlib.sha256()
        temporary = self.server.store.objects / f"{oid}.{threading.get_ident()}.part"
        self.body_read = True
        with temporary.open("wb") as opened:
            if self.headers.get("Transfer-Encoding") == "chunked":
                while length := int(self.rfile.readline(), 16):
                    part = self.rfile.read(length)
                    self.rfile.readline()
                    size += length
                    digest.update(part)
                    opened.write(part)
                self.rfile.readline()
                self.record["received_bytes"] = size
            else:
                remaining = size
                while remaining and (part := self.rfile.read(min(1 << 20, remaining))):
                    remaining -= len(part)
                    digest.update(part)
                    opened.write(part)
        if digest.hexdigest() != oid:
            temporary.unlink()
            raise Refusal(400, "content does not match its hash")
        temporary.rename(self.server.store.objects / oid)
        self.server.store.state["repos"][repo].setdefault("uploaded", {})[oid] = size
        self.server.store.save()
        self.reply({})

    def resolve_file(self, repo: str, revision: str, path: str) -> None:
        stored = self.content_readable(repo)
        commit = self.server.store.resolve(stored, revision)
        entry = stored["commits"][commit]["files"].get(path)
        if entry is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["lfs"] or entry["oid"]}"'}
        if not entry["lfs"]:
            content = self.server.store.content_path(entry)
            assert content is not None
            self.reply_range(content, entry["size"], headers)
            return
        headers |= {"X-Linked-Etag": f'"{entry["lfs"]}"', "X-Linked-Size": str(entry["size"])}
        if self.server.store.content_path(entry) is None:
            headers["X-Xet-Hash"] = entry["xet"]
            headers["X-Xet-Refresh-Route"] = f"{self.endpoint()}/api/models/{repo}/xet-read-token/{commit}"
        # Another origin, as the Hub's content network is: clients must not send their token there.
        address = f"http://localhost:{self.server.server_port}/_cdn/{entry['lfs']}"
        self.reply_bytes(b"", 302, {**headers, "Location": address})

    def cdn(self, sha256: str) -> None:
        path = self.server.store.content_path({"lfs": sha256, "oid": sha256})
        if path is None:
            raise Refusal(404, "this double serves Xet files by Xet only")
        if "Authorization" in self.headers:
            raise Refusal(400, "a token was sent to the content network")
        self.reply_range(path, path.stat().st_size, {"ETag": f'"{sha256}"'})

    def reply_range(self, path: Path, size: int, headers: dict[str, str]) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start, stop, status = 0, size, 200
        if match:
            start, stop, status = int(match[1]), min(size, int(match[2] or size - 1) + 1), 206
            if start >= size:
                raise Refusal(416, "Range not satisfiable")
            headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        self.body()
        self.record["status"] = status
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(stop - start), "Accept-Ranges": "bytes"}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with path.open("rb") as opened:
            opened.seek(start)
            remaining = stop - start
            while remaining and (part := opened.read(min(1 << 20, remaining))):
                self.wfile.write(part)
                self.record["sent_bytes"] += len(part)
                remaining -= len(part)

    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"
