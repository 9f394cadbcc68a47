"""What the double of the Hub remembers: repos, commits, branches, and the bytes of files, all under one folder.

The state is written after each change, so that a test may kill the server and start another on the same folder.
"""

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

REGULAR_LIMIT_BYTES = 10_000_000
BINARY_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npy", ".npz", ".parquet")


class Refusal(Exception):
    """A status code and the Hub's headers for it."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def git_blob_id(content: bytes) -> str:
    """Return git's object id of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str, size_bytes: int) -> bool:
    """Tell whether the Hub would store a file outside of git, as its default .gitattributes has it."""
    return path.endswith(BINARY_SUFFIXES) or size_bytes > REGULAR_LIMIT_BYTES


class Store:
    """Repos and contents.

    A file entry is {"oid", "size"} and for large files {"lfs": sha256, "xet": hash or None}; its bytes lie in
    objects/<sha256 or blob id>, in a seeded folder (objects.json maps the id to a path), or in the Xet store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        self.objects = root / "objects"
        self.objects.mkdir(parents=True, exist_ok=True)
        self.shards_read: set[str] = set()
        self.state_path = root / "state.json"
        if self.state_path.exists():
            self.state = json.loads(self.state_path.read_text())
        else:
            self.state = {"repos": {}, "external": {}, "tokens": {}, "xet": {}, "counter": 0}

    def save(self) -> None:
        """Write the state beside the old one, then swap."""
        with self.lock:
            temporary = self.state_path.with_suffix(".new")
            temporary.write_text(json.dumps(self.state))
            os.replace(temporary, self.state_path)

    # --- repos -----------------------------------------------------------------------------------------------------

    def create(self, repo_id: str, private: bool, gated: str | bool = False) -> dict[str, Any]:
        """Make an empty repo with one commit on main, holding .gitattributes."""
        with self.lock:
            if repo_id in self.state["repos"]:
                raise Refusal(409, "You already created this model repo", None)
            repo: dict[str, Any] = {
                "private": private, "gated": gated, "readers": [], "region": "us", "commits": {}, "branches": {},
            }  # fmt: skip
            self.state["repos"][repo_id] = repo
            attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
            self.put_object(attributes)
            entry = {"oid": git_blob_id(attributes), "size": len(attributes), "lfs": None, "xet": None}
            self.add_commit(repo, "main", {".gitattributes": entry}, "initial commit", None)
            return repo

    def add_commit(
        self, repo: dict[str, Any], branch: str, files: dict[str, Any], message: str, parent: str | None
    ) -> str:
        """Append a commit to a branch and return its id."""
        with self.lock:
            self.state["counter"] += 1
            digest = hashlib.sha1(f"{self.state['counter']} {message} {parent}".encode()).hexdigest()
            repo["commits"][digest] = {"files": files, "message": message, "parent": parent}
            repo["branches"][branch] = digest
            self.save()
            return digest

    def resolve(self, repo: dict[str, Any], revision: str) -> str:
        """Return the commit of a branch name or commit id."""
        if revision in repo["branches"]:
            return str(repo["branches"][revision])
        if revision in repo["commits"]:
            return revision
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def files(self, repo: dict[str, Any], revision: str) -> dict[str, Any]:
        """Return the file entries at a revision."""
        return dict(repo["commits"][self.resolve(repo, revision)]["files"])

    # --- contents --------------------------------------------------------------------------------------------------

    def put_object(self, content: bytes) -> None:
        """Keep a small file's content under its git id and its SHA-256."""
        for name in (git_blob_id(content), hashlib.sha256(content).hexdigest()):
            (self.objects / name).write_bytes(content)

    def content_path(self, entry: dict[str, Any]) -> Path | None:
        """Return where an entry's bytes lie as a plain file, or None if the Xet store has them."""
        key = entry["lfs"] or entry["oid"]
        if key in self.state["external"]:
            return Path(self.state["external"][key])
        path = self.objects / key
        return path if path.exists() else None

    def seed(self, repo_id: str, folder: Path, options: dict[str, Any]) -> str:
        """Make a repo from a folder, in place: large files are served from where they lie.

        options: private, gated, readers (user names let into a gated repo), hashes ("real", or "names" for files too
        large to read: then the SHA-256 is that of the repo's and the file's name, and the Xet hash stands for nothing
        that could be downloaded by Xet), xet (whether the files have Xet hashes), region.
        """
        with self.lock:
            repo = self.create(repo_id, bool(options.get("private")), options.get("gated", False))
            repo["readers"] = options.get("readers", [])
            repo["region"] = options.get("region", "us")
            files = self.files(repo, "main")
            for path in sorted(item for item in folder.rglob("*") if item.is_file() and ".cache" not in item.parts):
                name, size = str(path.relative_to(folder)), path.stat().st_size
                if is_lfs(name, size):
                    if options.get("hashes") == "names":
                        digest = hashlib.sha256(f"{options.get('salt', repo_id)} {name} {size}".encode()).hexdigest()
                    else:
                        with path.open("rb") as opened:
                            digest = hashlib.file_digest(opened, "sha256").hexdigest()
                    self.state["external"].setdefault(digest, str(path.resolve()))
                    xet = None
                    if options.get("xet", True) and options.get("hashes") == "names":
                        xet = hashlib.sha256(b"xet" + digest.encode()).hexdigest()
                    elif options.get("xet", True):
                        xet = self.put_xet(path)
                    files[name] = {"oid": git_blob_id(digest.encode()), "size": size, "lfs": digest, "xet": xet}
                else:
                    content = path.read_bytes()
                    self.put_object(content)
                    files[name] = {"oid": git_blob_id(content), "size": size, "lfs": None, "xet": None}
            return self.add_commit(repo, "main", files, "seed", repo["branches"]["main"])

    def put_xet(self, path: Path) -> str:
        """Put a file into the Xet store, by hf_xet itself, and return its Xet hash."""
        import hf_xet

        session = hf_xet.XetSession()
        endpoint = f"local://{self.root / 'cas'}"
        with session.new_upload_commit(endpoint=endpoint, token="xet", token_expiry_unix_secs=1 << 40) as commit:
            handle = commit.start_upload_file(str(path), sha256=hf_xet.COMPUTE_SHA256)
        return str(handle.result().xet_info.hash)

    def xet_hashes(self) -> dict[str, dict[str, Any]]:
        """Return SHA-256 -> {"xet": hash, "size": bytes} of every file in the local Xet store.

        Read from its shard files (format: xet-core, mdb_shard, `file_structs.rs`): 48-byte records, a file's header
        (hash, flags, number of segments), its segments, as many verification records if flagged, and a metadata
        record with the SHA-256 if flagged.
        """
        known: dict[str, dict[str, Any]] = self.state["xet"]
        for shard in sorted((self.root / "cas" / "xet" / "xorbs" / "shards").glob("*.mdb")):
            if shard.name not in self.shards_read:
                self.shards_read.add(shard.name)
                known.update(parse_shard(shard.read_bytes()))
        return known


def xet_hex(raw: bytes) -> str:
    """Write a 32-byte Xet hash as it is printed: four little-endian 64-bit words."""
    return "".join(f"{int.from_bytes(raw[i : i + 8], 'little'):016x}" for i in range(0, 32, 8))


def parse_shard(data: bytes) -> dict[str, dict[str, Any]]:
    """Return SHA-256 -> {"xet", "size"} of the files in one Xet shard."""
    record, found = 48, {}
    position = record  # behind the shard's own header
    while position + record <= len(data):
        header = data[position : position + record]
        if header[:32] == b"\xff" * 32:
            break
        flags, num_segments = int.from_bytes(header[32:36], "little"), int.from_bytes(header[36:40], "little")
        position += record
        size = 0
        for _ in range(num_segments):
            size += int.from_bytes(data[position + 36 : position + 40], "little")
            position += record
        if flags & (1 << 31):
            position += record * num_segments
        if flags & (1 << 30):
            # The SHA-256 is kept in the same word order as the other hashes.
            found[xet_hex(data[position : position + 32])] = {"xet": xet_hex(header[:32]), "size": size}
            position += record
    return found
