"""The files behind /v1/files: on disk in a folder of the server's own, bounded in bytes and in life, one owner each.

Files belong to whoever's API key brought them, and nobody else can tell that they exist. Knows no HTTP and no batches.
"""

import secrets
import shutil
import tempfile
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from headrace.config import ServerOptions
from headrace.errors import RequestError

OVERHEAD = 4096  # bytes that a file counts for beside its own


class FileObject(msgspec.Struct, kw_only=True):
    """What clients see of a file; the fields are OpenAI's."""

    id: str
    object: str = "file"
    bytes: int = 0
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: str = "processed"
    status_details: None = None


@dataclass
class StoredFile:
    owner: str
    about: FileObject
    path: Path


class Files:
    """All files, the oldest first."""

    def __init__(self, options: ServerOptions):
        self._options = options
        self._files: dict[str, StoredFile] = {}
        self._used = 0  # bytes, each file's overhead included
        self._folder: Path | None = None

    def new(self, owner: str, filename: str, purpose: str) -> StoredFile:
        """An empty file. Raises RequestError (413) if the server has no room for more."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="headrace-files-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._take_room(OVERHEAD)
        name, now = f"file-{secrets.token_hex(12)}", int(time.time())
        expires = now + int(self._options.stored_file_lifetime)
        about = FileObject(id=name, created_at=now, expires_at=expires, filename=filename, purpose=purpose)
        file = self._files[name] = StoredFile(owner, about, self._folder / name)
        file.path.touch()
        return file

    def append(self, file: StoredFile, data: bytes) -> None:
        """Raises RequestError: 413 if the server has no room for more, 404 if the file has been deleted."""
        if file.about.id not in self._files:
            raise RequestError(f"The file {file.about.id} was deleted while it was written.", "file_id", 404)
        self._take_room(len(data))
        file.about.bytes += len(data)
        with file.path.open("ab") as stream:
            stream.write(data)

    def open(self, file: StoredFile) -> BinaryIO:
        """The file, to be read even if it is deleted meanwhile. Raises RequestError (404) if it has been."""
        if file.about.id not in self._files:
            raise RequestError(f"The file {file.about.id} was deleted before it was read.", "file_id", 404)
        return file.path.open("rb")

    def find(self, file_id: str, owner: str, param: str = "file_id") -> StoredFile:
        """Raises RequestError (404), blaming ``param``, if there is no such file, or it is another's."""
        self._forget_old()
        file = self._files.get(file_id)
        if file is None or file.owner != owner:
            raise RequestError(f"No such File object: {file_id}.", param, 404)
        return file

    def of(self, owner: str) -> list[FileObject]:
        """An owner's files, the newest first."""
        self._forget_old()
        return [file.about for file in reversed(self._files.values()) if file.owner == owner]

    def remove(self, file: StoredFile) -> None:
        if self._files.pop(file.about.id, None) is not None:
            self._used -= file.about.bytes + OVERHEAD
            file.path.unlink(missing_ok=True)

    def _forget_old(self) -> None:
        now = time.time()
        while self._files and (oldest := next(iter(self._files.values()))).about.expires_at < now:
            self.remove(oldest)

    def _take_room(self, size: int) -> None:
        self._forget_old()
        limit = self._options.max_stored_file_bytes
        if self._used + size > limit:
            message = f"The server keeps {limit:,} bytes of files (--max-stored-file-bytes): delete some."
            raise RequestError(message, "file", 413)
        self._used += size
