"""A checkpoint on the Hub read in place: byte ranges of the files that a plan looks at, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass, field

from rewriter.errors import CheckpointError
from rewriter.hub.errors import hub_errors
from rewriter.hub.models import RemoteTree, files_to_download, remote_tree

HEADER_BLOCK_BYTES = 131_072
"""What is fetched when the start of a shard is asked for, so that length and header cost one request.

R1's headers have about 75 kB, those of 97 % of the most used models less than 100 kB (huggingface_hub 2.4,
`parse_safetensors_file_metadata`)."""


@dataclass
class RemoteRepo:
    """The files of a Hub repo at one commit, as a ByteSource for a Checkpoint.

    num_requests and received_bytes count what reading has cost so far.
    """

    tree: RemoteTree
    num_requests: int = 0
    received_bytes: int = 0
    _starts: dict[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """How messages call it."""
        return self.tree.repo_id

    def size_bytes(self, file_name: str) -> int | None:
        """Size of a file, or None when there is no such file."""
        entry = self.tree.files.get(file_name)
        return entry.size_bytes if entry else None

    def read(self, file_name: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes of a file from `offset`.

        Raises:
            CheckpointError: the server sends another range than asked for.
            HubError: the Hub refused or could not be reached.
        """
        end = min(offset + size, self.size_bytes(file_name) or 0)
        if end <= offset:
            return b""
        start = self._starts.get(file_name, b"")
        if end <= len(start):
            return start[offset:end]
        if offset < HEADER_BLOCK_BYTES and not start:
            self._starts[file_name] = self._fetch(file_name, 0, max(end, HEADER_BLOCK_BYTES))
            return self._starts[file_name][offset:end]
        return self._fetch(file_name, offset, end)

    def _fetch(self, file_name: str, begin: int, end: int) -> bytes:
        """Bytes begin..end of a file, by one GET with a Range header; a server that ignores it is refused."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        end = min(end, self.size_bytes(file_name) or 0)
        url = hf_hub_url(self.tree.repo_id, file_name, revision=self.tree.commit)
        # Compressed transfer would shift the range.
        headers = {**build_hf_headers(library_name="mote"), "Range": f"bytes={begin}-{end - 1}"}
        headers["Accept-Encoding"] = "identity"
        with (
            hub_errors(self.tree.repo_id),
            http_stream_backoff("GET", url, headers=headers, follow_redirects=True, timeout=60) as response,
        ):
            hf_raise_for_status(response)
            whole = begin == 0 and end == self.size_bytes(file_name)
            if response.status_code != 206 and not whole:
                raise CheckpointError(
                    f"{self.name}/{file_name}: the server answered {response.status_code} instead of the byte range "
                    f"{begin}-{end - 1}, so the file cannot be read without downloading it"
                )
            content = response.read()
        self.num_requests += 1
        self.received_bytes += len(content)
        if len(content) != end - begin:
            raise CheckpointError(
                f"{self.name}/{file_name}: {len(content)} bytes came for the range {begin}-{end - 1}, "
                f"expected {end - begin}"
            )
        return content


def open_remote(
    repo_id: str, revision: str | None = None, say: Callable[[str], None] = lambda message: None
) -> RemoteRepo:
    """List a repo's files; content is read as it is asked for.

    Raises:
        HubError: the repo or revision does not exist, or the Hub refused.
    """
    return RemoteRepo(remote_tree(repo_id, revision, say))


def download_size_bytes(remote: RemoteRepo) -> tuple[int, int]:
    """Return (files, bytes) that a full run would download."""
    wanted = files_to_download(remote.tree)
    return len(wanted), sum(file.size_bytes for file in wanted)
