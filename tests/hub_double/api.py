"""The Hub's API as huggingface_hub 2.4 calls it: repos, trees, branches, commits, duplication, tokens for Xet."""

import base64
import json
import time
from typing import Any
from urllib.parse import parse_qs

from handler import Handler
from store import Refusal, git_blob_id, is_lfs

PAGE_SIZE = 100


class ApiHandler(Handler):
    """The API's answers."""

    def whoami(self) -> None:
        user = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        self.reply({"type": "user", "name": user["name"], "orgs": []})

    def create_repo(self) -> None:
        body, user = self.json_body(), self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        repo_id = f"{body.get('organization') or user['name']}/{body['name']}"
        self.check_write(repo_id)
        if repo_id in self.server.store.state["repos"]:
            self.reply(
                {"error": "You already created this model repo", "url": f"{self.endpoint()}/{repo_id}"}, status=409
            )
            return
        self.server.store.create(repo_id, body.get("visibility") == "private")
        self.reply({"url": f"{self.endpoint()}/{repo_id}", "name": repo_id})

    def validate_yaml(self) -> None:
        from huggingface_hub import ModelCard

        try:
            data = ModelCard(self.json_body()["content"]).data.to_dict()
        except ValueError as error:
            self.reply({"errors": [{"message": str(error)}], "warnings": []}, 400)
            return
        if not isinstance(data.get("license", ""), str):
            self.reply({"errors": [{"message": '"license" must be a string'}], "warnings": []}, 400)
            return
        self.reply({"errors": [], "warnings": []})

    def model_info(self, repo: str, revision: str = "main") -> None:
        stored = self.readable(repo)
        commit = self.server.store.resolve(stored, revision)
        files = stored["commits"][commit]["files"]
        self.reply(
            {
                "id": repo, "modelId": repo, "sha": commit, "private": stored["private"], "gated": stored["gated"],
                "disabled": False, "tags": [], "siblings": [{"rfilename": name} for name in sorted(files)],
            }
        )  # fmt: skip

    def describe(self, path: str, entry: dict[str, Any]) -> dict[str, Any]:
        described = {"type": "file", "path": path, "oid": entry["oid"], "size": entry["size"]}
        if entry["lfs"]:
            described["lfs"] = {"oid": entry["lfs"], "size": entry["size"], "pointerSize": 135}
            if entry["xet"]:
                described["xetHash"] = entry["xet"]
        return described

    def tree(self, repo: str, revision: str) -> None:
        files = self.server.store.files(self.readable(repo), revision)
        start = int(self.query.get("cursor", ["0"])[0])
        names = sorted(files)
        headers = {}
        if start + PAGE_SIZE < len(names):
            link = f"{self.endpoint()}{self.path.split('?')[0]}?recursive=True&cursor={start + PAGE_SIZE}"
            headers["Link"] = f'<{link}>; rel="next"'
        page = names[start : start + PAGE_SIZE]
        self.reply([self.describe(name, files[name]) for name in page], headers=headers)

    def paths_info(self, repo: str, revision: str) -> None:
        files = self.server.store.files(self.readable(repo), revision)
        paths = parse_qs(self.body().decode()).get("paths", [])
        self.reply([self.describe(path, files[path]) for path in paths if path in files])

    def refs(self, repo: str) -> None:
        branches = self.readable(repo)["branches"].items()
        listed = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": commit} for n, commit in branches]
        self.reply({"branches": listed, "converts": [], "tags": []})

    def create_branch(self, repo: str, branch: str) -> None:
        stored, body = self.writable(repo), self.json_body()
        if branch in stored["branches"]:
            raise Refusal(409, f"Reference refs/heads/{branch} already exists")
        stored["branches"][branch] = self.server.store.resolve(stored, body.get("startingPoint") or "main")
        self.server.store.save()
        self.reply({})

    def delete_branch(self, repo: str, branch: str) -> None:
        self.writable(repo)["branches"].pop(branch)
        self.server.store.save()
        self.reply({})

    def preupload(self, repo: str, revision: str) -> None:
        stored = self.writable(repo)
        present = self.server.store.files(stored, revision)
        answers = []
        for file in self.json_body()["files"]:
            known = present.get(file["path"])
            answers.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if is_lfs(file["path"], file["size"]) else "regular",
                    "shouldIgnore": False,
                    "oid": (known["lfs"] or known["oid"]) if known else None,
                }
            )
        self.reply({"files": answers})

    def commit(self, repo: str, revision: str) -> None:
        stored, store = self.writable(repo), self.server.store
        lines = [json.loads(line) for line in self.body().splitlines() if line]
        header = lines[0]["value"]
        with store.lock:
            if revision not in stored["branches"]:
                raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            head = stored["branches"][revision]
            if header.get("parentCommit") not in (None, head):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            files = store.files(stored, revision)
            for line in lines[1:]:
                self.apply(stored, files, line["key"], line["value"])
            digest = store.add_commit(stored, revision, files, header["summary"], head)
        self.reply({"success": True, "commitOid": digest, "commitUrl": f"{self.endpoint()}/{repo}/commit/{digest}"})

    def apply(self, stored: dict[str, Any], files: dict[str, Any], key: str, value: dict[str, Any]) -> None:
        store = self.server.store
        if key == "file":
            content = base64.b64decode(value["content"])
            store.put_object(content)
            files[value["path"]] = {"oid": git_blob_id(content), "size": len(content), "lfs": None, "xet": None}
        elif key == "lfsFile":
            sha256 = value["oid"]
            known = self.known_large_file(stored, sha256, xet=True)
            if known is None:
                raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
            if "size" in value and value["size"] != known["size"]:
                raise Refusal(400, f"LFS size {value['size']} of {value['path']} differs from {known['size']}")
            files[value["path"]] = {"oid": git_blob_id(sha256.encode()), "lfs": sha256, **known}
        elif key == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        else:
            raise Refusal(400, f"unknown commit line {key}")

    def known_large_file(self, stored: dict[str, Any], sha256: str, xet: bool = False) -> dict[str, Any] | None:
        """Return size and Xet hash of a large file that this repo may point to: its own, uploaded, or duplicated."""
        for commit in stored["commits"].values():
            for entry in commit["files"].values():
                if entry["lfs"] == sha256:
                    return {"size": entry["size"], "xet": entry["xet"]}
        if sha256 in stored.get("duplicated", {}):
            return dict(stored["duplicated"][sha256])
        if sha256 in stored.get("uploaded", {}):
            return {"size": stored["uploaded"][sha256], "xet": None}
        # Xet's store does not know for which repo a file was sent.
        uploaded = self.server.store.xet_hashes().get(sha256)
        return dict(uploaded) if uploaded is not None and xet else None

    def duplicate_files(self, repo: str) -> None:
        source, body = self.content_readable(repo), self.json_body()
        target = self.writable(body["target"]["name"])
        failed = []
        entries = {e["lfs"]: e for c in source["commits"].values() for e in c["files"].values() if e["lfs"]}
        for file in body["files"]:
            entry = entries.get(file["sha256"])
            if entry is None or entry["xet"] != file["xetHash"]:
                failed.append({"sha256": file["sha256"], "error": "file not found"})
            elif source["region"] != target["region"]:
                failed.append({"sha256": file["sha256"], "error": "the repos are in different storage regions"})
            else:
                known = {"size": entry["size"], "xet": entry["xet"]}
                target.setdefault("duplicated", {})[file["sha256"]] = known
        self.server.store.save()
        self.reply({"success": [], "failed": failed})

    def duplicate_repo(self, repo: str) -> None:
        source, body = self.content_readable(repo), self.json_body()
        target_id = body["repository"]
        self.check_write(target_id)
        store = self.server.store
        if target_id in store.state["repos"]:
            self.reply({"error": "already exists", "url": f"{self.endpoint()}/{target_id}"}, 409)
            return
        target = json.loads(json.dumps(source))
        target["gated"] = False
        target["private"] = body.get("visibility", "private" if source["private"] else "public") == "private"
        store.state["repos"][target_id] = target
        store.save()
        self.reply({"url": f"{self.endpoint()}/{target_id}", "filesCopyPending": False})

    def xet_token(self, repo: str, kind: str, revision: str) -> None:
        if kind == "write":
            self.writable(repo)
        else:
            self.content_readable(repo)
        endpoint = f"local://{self.server.store.root / 'cas'}"
        expires = int(time.time()) + 3600
        self.reply(
            {"accessToken": "xet", "exp": expires, "casUrl": endpoint},
            headers={
                "X-Xet-Cas-Url": endpoint,
                "X-Xet-Access-Token": "xet",
                "X-Xet-Token-Expiration": str(expires),
            },
        )
