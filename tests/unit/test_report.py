"""Figures and the page, from results with the keys that `bench serve --save-detailed` writes (ours or vLLM's)."""

import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.bench.metrics import differences
from headrace.bench.plot import FIGURES, frontier
from headrace.bench.reading import load, requests_of
from headrace.bench.report import ledger, report
from headrace.cli.main import main


def result(scale: float = 1.0, **fields: Any) -> dict[str, Any]:
    """Four requests, of which the third failed and the last has a single token."""
    data: dict[str, Any] = {
        "date": "20261121-120000",
        "backend": "vllm",
        "label": None,
        "model_id": "m",
        "num_prompts": 4,
        **fields.pop("metadata", {}),
        "request_rate": "inf",
        "duration": 2.0,
        "completed": 3,
        "failed": 1,
        "request_throughput": 1.5 / scale,
        "output_throughput": 4.0 / scale,
        "input_lens": [100, 20, 7, 300],
        "output_lens": [3, 2, 0, 1],
        "ttfts": [0.3 * scale, 0.1 * scale, 0.0, 0.2 * scale],
        "itls": [[0.01 * scale, 0.03 * scale], [0.05 * scale], [], []],
        "start_times": [50.0, 50.1, 50.2, 50.3],
        "errors": ["", "", "reset by peer", ""],
    }
    for metric, value in (("ttft", 200), ("tpot", 20), ("itl", 30), ("e2el", 250)):
        data |= {f"{name}_{metric}_ms": value * scale for name in ("mean", "median", "p99")}
    return data | fields


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """The homework's three configurations: named by label, by metadata, and by file alone."""
    contents = {
        "one": result(1.0, label="1 GPU"),
        "two": result(0.6, metadata={"tp": "2"}),
        "four": result(0.4),
    }
    paths = [tmp_path / f"{name}.json" for name in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_text(json.dumps(content))
    return paths


def test_requests_come_from_vllms_keys() -> None:
    requests = requests_of(result())
    assert requests.ttft == pytest.approx([300, 100, np.nan, 200], nan_ok=True)
    assert requests.tpot == pytest.approx([20, 50, np.nan, np.nan], nan_ok=True)
    assert requests.start == pytest.approx([0, 100, 200, 300]) and np.isnan(requests.queue).all()
    with_latencies = requests_of(result(latencies=[0.4, 0.2, 0.0, 0.2]))
    assert with_latencies.tpot[:2] == pytest.approx([50, 100])


def test_the_homeworks_two_figures(files: list[Path]) -> None:
    results = load(files)
    assert [r.name for r in results] == ["1 GPU", "tp=2", "four"]
    for name, heights in (("ttft-sorted", [100, 200, 300]), ("tpot-sorted", [20, 50])):
        figure = FIGURES[name](results)
        assert figure is not None
        lines = figure.axes[0].lines
        assert [line.get_label() for line in lines] == ["1 GPU", "tp=2", "four"]
        assert lines[0].get_ydata() == pytest.approx(heights)
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1 GPU", "tp=2", "four"]


def test_plot_writes_figures_and_lists(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures"
    assert main(["bench", "plot", *map(str, files), "--out", str(out)]) == 0
    expected = {f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "svg")}
    expected |= {"requests.csv", "requests-1_GPU.txt", "requests-tp=2.txt", "requests-four.txt"}
    assert {path.name for path in out.iterdir()} == expected
    assert set(map(Path, capsys.readouterr().out.split())) == set(out.iterdir())
    rows = list(csv.DictReader((out / "requests.csv").read_text().splitlines()))
    figures = {"input_tokens": "100", "output_tokens": "3", "ttft_ms": "300.000", "tpot_ms": "20.000"}
    times = {"due_s": "", "queue_ms": "", "e2el_ms": "340.000", "error": ""}  # vLLM's file doesn't tell what was due
    assert len(rows) == 12 and rows[0] == {"configuration": "1 GPU", "request": "0"} | figures | times
    lines = (out / "requests-1_GPU.txt").read_text().splitlines()
    assert lines[2].split() == ["1", "20", "2", "-", "-", "100.000", "50.000", "150.000", "-"]
    assert lines[3].split(maxsplit=8) == ["2", "7", "0", *"-----", "reset by peer"]


def test_plot_without_latencies_by_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    short = {key: value for key, value in result().items() if not isinstance(value, list)}
    path.write_text(json.dumps(short) + "\n" + json.dumps(short | {"label": "again"}))  # --append-result
    assert main(["bench", "plot", str(path), "--out", str(tmp_path / "out")]) == 0
    assert "`--save-detailed` keeps them" in capsys.readouterr().out
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"pareto.png", "pareto.svg"}


@pytest.mark.parametrize("label", ["_run", "__", "a$x_{$"])
def test_names_that_mean_something_to_matplotlib(label: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(result(label=label)))
    assert main(["bench", "plot", str(path), "--out", str(tmp_path / "out")]) == 0
    assert list((tmp_path / "out").glob("*.png"))


def test_nothing_is_drawn_of_requests_that_all_failed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(result(errors=["refused"] * 4)))
    main(["bench", "plot", str(path), "--out", str(tmp_path / "out")])
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "can't be read"),
        ('{"a": 1}', "is no result of `bench serve`"),
        (None, "No such file"),
        ('{"request_throughput": 1, "ttfts": "x"}', "is no result of `bench serve`: Expected `array`"),
        ('{"request_throughput": 1, "ttfts": [1], "itls": [[], []]}', "itls are 2, ttfts 1"),
    ],
)
def test_what_is_no_result(
    content: str | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    assert main(["bench", "plot", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_figures_need_matplotlib(files: list[Path], tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None; from headrace.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    run = [sys.executable, "-c", code, "bench"]
    done = subprocess.run([*run, "plot", str(files[0])], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install matplotlib" in done.stderr and "Traceback" not in done.stderr
    subprocess.run([*run, "report", str(tmp_path)], check=True, capture_output=True)
    page = (tmp_path / "report.html").read_text()
    assert "pip install" in page and "<svg" not in page and "1 GPU" in page


def test_frontier() -> None:
    assert frontier([(3, 9), (1, 5), (2, 4), (2, 7), (4, 9)]) == [(1, 5), (2, 7), (3, 9)]


class Page(HTMLParser):
    """What of a page would be fetched, the text of its table of runs, and whether every tag is closed."""

    VOID = {"meta", "br", "link", "img"}

    def __init__(self, text: str):
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.fetched += [str(v) for k, v in attributes if k in ("src", "href", "xlink:href") and v and v[0] != "#"]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:  # the pieces of an SVG close themselves
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self.rows and data.strip() and self.open[-1:] and {"td", "th", "small"} & set(self.open[-2:]):
            self.rows[-1].append(data.strip())


def test_the_page_says_it_all_and_fetches_nothing(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text(json.dumps({"System": {"OS": "Some <Linux>"}}))
    (tmp_path / "metrics-before.txt").write_text("")
    (tmp_path / "metrics-after.txt").write_text('# TYPE vllm:x counter\nvllm:x_total{engine="0"} 12345.0\n')
    (tmp_path / "server.log").write_text(
        "Start-up ledger\n│ weights │ 1.25 │ 0.50 │\n│ server ready after │ 3.00 │ │\n"
    )
    chats = [{"prompt": "Hi?", "answer": "<b>Yes", "tokens": 9, "ttft_ms": 20.0, "total_ms": 90.0}]
    times = {f"{name}_{what}_ms": 77.0 for name in ("median", "p99") for what in ("ttft", "total")}
    (tmp_path / "chat.json").write_text(json.dumps({"chats": chats} | times))
    text = report(tmp_path, baseline="1 GPU")
    page = Page(text)
    assert not page.fetched and "http://" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)
    assert "Some &lt;Linux&gt;" in text and "&lt;b&gt;Yes" in text
    cells = {row[0]: row[1:] for row in page.rows if row}
    assert cells["1 GPU"][:3] == ["1.50", "4.0", "200.0"]
    assert cells["tp=2"][:6] == ["2.50", "+66.7%", "6.7", "+66.7%", "120.0", "-40.0%"]
    assert cells["weights"] == ["1.25", "0.50"] and cells["vllm:x_total"][:4] == ["engine=0", "0", "12,345", "12,345"]
    assert text.count("<svg") == len(FIGURES)


def test_report_refuses(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "report", str(tmp_path), "--baseline", "2 GPU"]) == 2
    assert "no result is called '2 GPU'" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["bench", "report", str(tmp_path / "empty")]) == 2
    assert "there are no results in" in capsys.readouterr().err


def test_metrics_differ_by() -> None:
    before = "# TYPE h histogram\nh_sum 1.0\nh_count 2\n# TYPE g gauge\ng 5\n# TYPE process_x gauge\nprocess_x 1\n"
    after = '# TYPE h histogram\nh_bucket{le="+Inf"} 6\nh_sum 9.0\nh_count 6\n# TYPE g gauge\ng 5\n'
    rows = {row["name"]: row for row in differences(before, after)}
    assert set(rows) == {"h_count", "g"}
    assert rows["h_count"]["difference"] == 4 and rows["h_count"]["mean"] == 2 and rows["g"]["difference"] == 0


def test_ledger_of_vllms_log() -> None:
    log = """INFO [default_loader.py:293] Loading weights took 10.90 seconds
INFO [gpu_model_runner.py:4221] Model loading took 18.55 GiB memory and 31.238919 seconds
INFO [kv_cache_utils.py:1307] GPU KV cache size: 132,128 tokens
INFO [core.py:278] init engine (profile, create kv cache, warmup model) took 44.16 seconds"""
    assert ledger(log) == [
        ("weights read", "10.90", ""),
        ("model loaded", "31.238919", "18.55"),
        ("engine ready", "44.16", ""),
        ("KV cache of 132,128 tokens", "", ""),
    ]
