"""Tuned products: which are used, what their files look like, how the fastest is chosen, and ``headrace tune``."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from headrace import device as devices
from headrace.cli.main import main
from headrace.errors import ConfigError
from headrace.ops import linear, tuned
from headrace.ops.tuned import Product, Tiling, file_for, read, tuner, write

GPU, NAME = torch.device("cuda", 0), "NVIDIA H200 (test)"
ONE, OTHER = Tiling(64, 2, 128, 4, 4), Tiling(32, 1, 64, 4, 7)


def product(rows: int, tiling: Tiling | None, us: float = 2.5) -> Product:
    return Product(4096, 1024, rows, tiling, us, 3.0, 4.0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Headrace's cache, on a machine with a GPU and with nothing shipped."""
    monkeypatch.setattr(tuned, "describe", lambda device: NAME)
    monkeypatch.setattr(tuned, "SHIPPED", tmp_path / "shipped")
    with mock.patch.dict(tuned.TILINGS, clear=True):
        yield tmp_path


def test_own_results_win_over_shipped_ones_and_the_rule_does_the_rest(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    by_rule = linear.rule(4096, 1024, 4)
    assert linear.choose(GPU, 4096, 1024, 8) == by_rule
    write(file_for(NAME, cache / "shipped"), NAME, [product(8, ONE), product(64, ONE)])
    write(file_for(NAME, cache / "tuned"), NAME, [product(8, OTHER), product(16, None)])
    with caplog.at_level("INFO"):
        tuned.use(GPU, cache)
    assert [linear.choose(GPU, 4096, 1024, rows) for rows in (4, 8, 16, 64)] == [by_rule, OTHER, None, ONE]
    assert linear.choose(GPU, 4096, 2048, 64) is None
    assert f"3 products tuned for {NAME}, 2 of them on this machine" in caplog.messages
    before = dict(tuned.TILINGS)
    tuned.use(torch.device("cpu"), cache)
    assert before == tuned.TILINGS


def test_files_are_added_to_and_hold_a_product_a_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write(path, NAME, [product(16, None), product(2, ONE)])
    write(path, NAME, [product(2, OTHER), product(4, ONE)])
    assert read(path, NAME) == [product(2, OTHER), product(4, ONE), product(16, None)]
    first = {"outputs": 32, "parts": 1, "block": 64, "warps": 4, "stages": 7}
    assert json.loads(path.read_text().splitlines()[1].rstrip(",")) == {
        "outputs": 4096,
        "inputs": 1024,
        "rows": 2,
        "tiling": first,
        "us": 2.5,
        "rule_us": 3.0,
        "library_us": 4.0,
    }
    assert [one.name for one in path.parent.iterdir()] == ["file.json"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: "{", "truncated"),
        (lambda text: text.replace('"us"', '"them"'), "`us`"),
        (lambda text: text.replace('"block":128', '"block":100'), "tiling.block"),
        (lambda text: text.replace(NAME, "NVIDIA L4"), "tuned on NVIDIA L4"),
    ],
)
def test_a_file_that_is_wrong_gets_one_sentence(cache: Path, change: Callable[[str], str], reason: str) -> None:
    path = file_for(NAME, cache / "tuned")
    write(path, NAME, [product(8, ONE)])
    path.write_text(change(path.read_text()))
    with pytest.raises(ConfigError) as caught:
        tuned.use(GPU, cache)
    message = str(caught.value)
    assert message.startswith(str(path)) and reason in message and "`headrace tune`" in message and "\n" not in message


def test_shipped_files_can_be_used() -> None:
    for path in tuned.SHIPPED.glob("*.json"):
        device = json.loads(path.read_text())["device"]
        assert path == file_for(device, tuned.SHIPPED) and read(path, device)


# By the microseconds that ways take; those not named take 9.
@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({None: 5.0, "rule": 4.0, "one": 2.0}, "one"),
        ({None: 2.01, "rule": 4.0, "one": 2.0}, None),  # as good, and the library's
        ({None: 2.01, "rule": 2.03, "one": 2.0}, "rule"),
        ({None: 2.01, "before": 2.03, "one": 2.0}, "before"),
        ({"wrong": 1.0, "one": 2.0}, "one"),
    ],
)
def test_the_fastest_right_way_is_taken_unless_the_usual_is_about_as_good(
    times: dict[str | None, float], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weights = torch.randn(8, 2048), torch.randn(2, 512, 2048)
    one, before, wrong, *_ = (way for way in tuner.candidates(512, 2048, 8)[2:] if way is not None)
    names = {"rule": linear.rule(512, 2048, 8), "one": one, "before": before, "wrong": wrong}
    by_way = {names.get(name or ""): us for name, us in times.items()}
    ran: list[Tiling | None] = []

    def few_rows(x: torch.Tensor, weight: torch.Tensor, bias: None, way: Tiling) -> torch.Tensor:
        ran.append(way)
        return F.linear(x, weight) * (2 if way == wrong else 1)

    def microseconds(run: Callable[[torch.Tensor], object], weights: torch.Tensor, repeats: int) -> float:
        ran.append(None)
        run(weights[1])  # appends its tiling, if it has one
        return by_way.get(ran[-1], 9.0)

    monkeypatch.setattr(tuner, "few_rows", few_rows)
    monkeypatch.setattr(tuner, "microseconds", microseconds)
    found = tuner.fastest(x, weights, before)
    assert found.tiling == names.get(expected or "")
    assert (found.key, found.us, found.rule_us, found.library_us) == (
        *((512, 2048, 8), by_way[found.tiling]),
        *(by_way.get(names["rule"], 9.0), by_way.get(None, 9.0)),
    )


def test_candidates_fit_a_hopper() -> None:
    """Shared memory holds each stage's block of both matrices; 227 KiB is what a program may have."""
    for way in tuner.candidates(4096, 4096, 64):
        assert way is None or 2 * way.block * (way.outputs + 64) * way.stages <= 227 * 1024


def test_tuning_needs_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["tune", "llama-3.1-8b"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["tune", "--rows", "3"]) == 2
    assert "3" in capsys.readouterr().err


def test_the_command_tunes_each_shape_of_the_models_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune(shapes: list[tuple[int, int]], rows: list[int], device: torch.device) -> Iterator[Product]:
        assert len(shapes) == len(set(shapes)) == 10
        yield from (Product(*shape, count, ONE, 2.0, 3.0, 4.0) for shape in shapes for count in rows)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "pick_device", lambda name: GPU)
    monkeypatch.setattr(devices, "describe", lambda device: NAME)
    monkeypatch.setattr(tuner, "tune", tune)
    monkeypatch.setenv("HEADRACE_CACHE_ROOT", str(tmp_path))
    assert main(["tune", "llama-3.1-8b", "smollm2-135m", "llama-3.1-8b", "--rows", "64", "8"]) == 0
    printed, path = capsys.readouterr(), file_for(NAME, tmp_path / "tuned")
    assert f"products tuned for {NAME}: {path}" in printed.err
    products = read(path, NAME)
    assert {(6144, 4096, 8), (4096, 14336, 64), (49152, 576, 8)} <= {one.key for one in products}
    assert len(printed.out.splitlines()) == 2 + len(products)
