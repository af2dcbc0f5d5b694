"""The loader: every tensor once, from whichever files hold it, in little memory, with errors that name the culprit."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from headrace.errors import ConfigError
from headrace.models import loader, stored
from headrace.models.source import ModelFiles


class Recorder:
    """Takes weights like a decoder, and remembers them."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        self.finished = 0
        self.seed: int | None = None
        self.threads: set[str] = set()

    def accepts(self, checkpoint_name: str) -> bool:
        return False  # nothing but plain values

    def load_weight(self, checkpoint_name: str, tensor: torch.Tensor) -> None:
        assert checkpoint_name not in self.weights
        if tensor.shape == (13,):
            raise ConfigError(f"The checkpoint's {checkpoint_name!r} has shape [13].")
        self.threads.add(threading.current_thread().name)
        self.weights[checkpoint_name] = tensor.clone()

    def finish_loading(self) -> None:
        self.finished += 1

    def init_dummy(self, seed: int) -> None:
        self.seed = seed


def files(directory: Path) -> ModelFiles:
    return ModelFiles("tiny", str(directory), "hf")


def weights(prefix: str, count: int = 3) -> dict[str, torch.Tensor]:
    kinds = (torch.float32, torch.bfloat16, torch.float16)
    return {f"{prefix}.{i}": torch.randn(5, 3 + i).to(kinds[i % 3]) for i in range(count)}


def sharded(directory: Path, index: bool = True) -> dict[str, torch.Tensor]:
    """Two shards that are the model, and what must not be read beside them."""
    parts = {f"model-0000{i}-of-00002.safetensors": weights(f"part{i}") for i in (1, 2)}
    for name, part in parts.items():
        save_file(part, directory / name)
    if index:
        places = {weight: name for name, part in parts.items() for weight in part}
        (directory / stored.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    save_file(weights("part1"), directory / "consolidated.safetensors")
    (directory / "pytorch_model.bin").write_bytes(b"pickle")
    return {weight: tensor for part in parts.values() for weight, tensor in part.items()}


def one_file(directory: Path) -> dict[str, torch.Tensor]:
    expected = weights("all", 40)
    save_file(expected, directory / "model.safetensors", metadata={"format": "pt"})
    return expected


def other_name(directory: Path) -> dict[str, torch.Tensor]:
    expected = weights("own")
    save_file(expected, directory / "mine.safetensors")
    return expected


@pytest.mark.parametrize("chunk_bytes", [stored.CHUNK_BYTES, 100])
@pytest.mark.parametrize("make", [sharded, lambda path: sharded(path, index=False), one_file, other_name])
def test_every_tensor_once(
    tmp_path: Path, make: Callable[[Path], dict[str, torch.Tensor]], chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "CHUNK_BYTES", chunk_bytes)
    expected, recorder, steps = make(tmp_path), Recorder(), []
    loader.load(recorder, files(tmp_path), progress=lambda done, total: steps.append((done, total)))
    assert recorder.weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(recorder.weights[name], tensor)
    total = sum(tensor.nbytes for tensor in expected.values())
    assert (steps[0], steps[-1]) == ((0, total), (total, total))
    assert steps == sorted(steps)
    assert recorder.finished == 1
    assert all(name.startswith("load") for name in recorder.threads)


def test_dummy_reads_no_file(tmp_path: Path) -> None:
    recorder = Recorder()
    loader.load(recorder, files(tmp_path / "nowhere"), "dummy", seed=7)
    assert (recorder.seed, recorder.finished) == (7, 1)


def _cut(directory: Path) -> None:
    path = directory / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-20])


def _bad_header(directory: Path) -> None:
    path = directory / "model-00001-of-00002.safetensors"
    path.write_bytes((2**40).to_bytes(8, "little") + path.read_bytes()[8:])


def _no_shard(directory: Path) -> None:
    (directory / "model-00002-of-00002.safetensors").unlink()


def _bad_index(directory: Path) -> None:
    (directory / stored.INDEX).write_text('{"weight_map": 3}')


def _only_pickles(directory: Path) -> None:
    for path in directory.glob("*.safetensors*"):
        path.unlink()


def _refused(directory: Path) -> None:
    save_file({"wrong.weight": torch.zeros(13)}, directory / "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, r"model-00002-of-00002.safetensors is damaged or cut short"),
        (_bad_header, r"model-00001-of-00002.safetensors is damaged or cut short"),
        (_no_shard, r"lacks model-00002-of-00002.safetensors, which .*index.json names"),
        (_bad_index, r"index.json is damaged"),
        (_only_pickles, r"only as pickles \(pytorch_model.bin\)"),
        (_refused, r"'wrong.weight' has shape \[13\]"),
    ],
)
def test_damage_gets_one_sentence(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    sharded(tmp_path)
    damage(tmp_path)
    recorder = Recorder()
    with pytest.raises(ConfigError, match=message) as caught:
        loader.load(recorder, files(tmp_path))
    assert "\n" not in str(caught.value)
    assert not recorder.finished


PEAK = """
import json, resource, sys, torch
from pathlib import Path
from headrace.models import loader
from headrace.models.source import ModelFiles

class Model:
    def __init__(self):
        self.weights = {}
    def load_weight(self, name, tensor):
        self.weights[name] = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
    def finish_loading(self):
        pass

def status(key):
    text = Path("/proc/self/status").read_text()
    return int(text.split(key + ":")[1].split()[0]) * 1024

loader.load(Model(), ModelFiles("warm", sys.argv[1] + "/warm", "hf"))
before, model = status("VmRSS"), Model()
loader.load(model, ModelFiles("big", sys.argv[1], "hf"))
total = sum(tensor.nbytes for tensor in model.weights.values())
print(json.dumps({"total": total, "peak": status("VmHWM") - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_peak_memory_is_the_weights_and_little_more(tmp_path: Path) -> None:
    """Reading shard by shard would need all files' mapped pages beside the weights: twice the memory."""
    (tmp_path / "warm").mkdir()
    one_file(tmp_path / "warm")
    for i in range(1, 5):  # sparse files: all zeros, so nothing is written
        shapes = {f"{i}.embedding": (48, 2**20), **{f"{i}.{j}": (8, 2**20) for j in range(6)}}
        header, at = {}, 0
        for name, shape in shapes.items():
            size = shape[0] * shape[1] * 2
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        with (tmp_path / f"model-0000{i}-of-00004.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["total"] == 4 * 96 * 2**21
    assert found["peak"] < found["total"] + loader.IN_FLIGHT_BYTES
