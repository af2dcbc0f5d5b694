"""Rules that the whole project keeps: size, light imports, nothing of one machine, documents that are true."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from headrace.config import GROUPS, OPTIONS, document
from headrace.models.registry import supported

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "headrace").rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LONGEST_FUNCTION, LONGEST_FILE = 80, 500  # lines
HEAVY = ("torch", "transformers", "numpy", "fastapi")


def test_functions_and_files_are_short() -> None:
    too_long = []
    for path in SOURCES:
        text = path.read_text()
        if (count := len(text.splitlines())) > LONGEST_FILE:
            too_long.append(f"{path.relative_to(ROOT)}: {count} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    too_long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    assert not too_long


def test_modules_say_what_they_own() -> None:
    silent = [
        path for path in SOURCES if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


@pytest.mark.parametrize(
    "code",
    [
        "import headrace; headrace.SamplingParams; headrace.EngineArgs",
        "from headrace.cli.main import main; main(['--help'])",
        "from headrace.cli.main import main; main(['--version'])",
        "from headrace.cli.main import main\ntry: main(['serve', '--help'])\nexcept SystemExit: pass",
        "from headrace.cli.main import main\ntry: main(['chat', '--help'])\nexcept SystemExit: pass",
        "from headrace.cli.main import main; main(['serve', '--no-such-flag'])",
        "from headrace.cli.main import main; main(['models'])",
    ],
)
def test_light_commands_load_nothing_heavy(code: str) -> None:
    check = f"import sys\n{code}\nsys.stderr.write(' '.join(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1:] in ([], [""]) or "error" in done.stderr
    assert not set(HEAVY) & set(done.stderr.split())


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_the_machine_it_was_written_on() -> None:
    machine = re.compile("|".join(rf"/{top}/" for top in ("work", "opt/pypi", "opt/wheels", "tmp/hr")) + f"|{ROOT}/")
    guilty = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", "ignore")
        guilty += [f"{path.relative_to(ROOT)}: {match.group()}" for match in machine.finditer(text)]
    assert not guilty


def test_every_obeyed_option_is_read_somewhere() -> None:
    obeyed = set(GROUPS) - {"parallel", "features", "legacy"}  # whose options are refused, noted or turned into others
    trivially = {"enforce_eager", "prefix_caching_hash_algo"}  # there is no other way yet
    code = "".join(path.read_text() for path in SOURCES if "config" not in path.parts)
    read = set(re.findall(r"\.(\w+)\b", code))
    ignored = {option.name for option in OPTIONS.values() if option.group in obeyed} - read - trivially
    assert not ignored


def test_readme_counts_the_architectures() -> None:
    assert f"{len(supported())} architectures" in (ROOT / "README.md").read_text()


def test_options_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "options.md").read_text() == document.markdown(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.slow
def test_wheel_is_pure_python(tmp_path: Path) -> None:
    copy = tmp_path / "copy"  # a build leaves folders behind
    shutil.copytree(ROOT / "headrace", copy / "headrace", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    subprocess.run([sys.executable, "-m", "build", "--wheel"], check=True, capture_output=True, cwd=copy)
    (wheel,) = (copy / "dist").iterdir()
    assert wheel.name == "headrace-0.1.0-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    packed = {name for name in names if name.startswith("headrace/")}
    shapes = (ROOT / "headrace/models/shapes").glob("*/config.json")
    tuned = (ROOT / "headrace/ops/tuned").glob("*.json")
    bench = (ROOT / "headrace/bench/datasets/verse.txt", ROOT / "headrace/bench/report.html.jinja")
    ui = (path for path in (ROOT / "headrace/server/ui/static").rglob("*") if path.is_file())
    assert packed == {str(path.relative_to(ROOT)) for path in (*SOURCES, *shapes, *bench, *tuned, *ui)}
    assert any(name.endswith("licenses/LICENSE") for name in names)
