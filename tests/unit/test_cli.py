"""The command line as a user meets it: spellings, one-line errors, chat and completion against a scripted server."""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.cli import bench, chat, collect_env, generate, serve
from headrace.cli.main import HEADRACE, main
from headrace.cli.parser import FlagParser, Group, config_from, merged, normalize
from headrace.cli.talk import Messages, room
from headrace.config import Config
from headrace.errors import ConfigError, RequestError
from headrace.types import CompletionOutput, RequestOutput, SamplingParams

SERVE_HELP = " `headrace serve --help` lists all flags."
NO_FILE = "No such file or directory."


def configure(*words: str) -> Config:
    parser = FlagParser(prog="headrace serve")
    serve.add_arguments(parser)
    return config_from(parser.parse(words))


# -- syntax ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["m"], {"model": "m"}),
        (["--port", "1", "m"], {"model": "m", "port": 1}),
        (["m", "--model", "m"], {"model": "m"}),
        (["--max_model_len", "40k"], {"max_model_len": 40_000}),
        (["--max-model-len=auto"], {"max_model_len": -1}),
        (["--max-model-len", "-1"], {"max_model_len": -1}),
        (["--gpu-memory-util", "0.5"], {"gpu_memory_utilization": 0.5}),
        (["--gpu_memory_util=0.5"], {"gpu_memory_utilization": 0.5}),
        (["--no-enable_prefix_caching"], {"enable_prefix_caching": False}),
        (["--no-enable-prefix", "--enable-prefix-caching"], {}),
        (["-tp=1", "-pp", "1", "--dp", "1"], {}),
        (["-O3"], {"optimization_level": "3"}),
        (["-O", "0"], {"optimization_level": "0"}),
        (["-O=1"], {"optimization_level": "1"}),
        (["--served-model-name", "a", "b", "--port=1"], {"served_model_name": ["a", "b"], "port": 1}),
        (["--api-key", "a", "--api-key", "b"], {"api_key": ["a", "b"]}),
        (["--allowed-origins", '["a","b"]'], {"allowed_origins": ["a", "b"]}),
        (["--hf-overrides", '{"a":{"x":1}}', "--hf-overrides.a.y_z=2"], {"hf_overrides": {"a": {"x": 1, "y_z": 2}}}),
        (["--hf-overrides.flag", "--port=1"], {"hf_overrides": {"flag": True}, "port": 1}),
        (["--hf-overrides.name", "some text"], {"hf_overrides": {"name": "some text"}}),
        (["--rope-scaling", '{"factor":2}'], {"hf_overrides": {"rope_scaling": {"factor": 2}}}),
        (["--chat-template", "{{ a }}"], {"chat_template": "{{ a }}"}),
    ],
)
def test_flags(words: list[str], expected: dict[str, Any]) -> None:
    assert configure(*words).non_default() == {name: "***" if name == "api_key" else v for name, v in expected.items()}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["serve", "--porrt", "1"], "there is no flag --porrt; did you mean --port?" + SERVE_HELP),
        (["serve", "--prot", "3"], "there is no flag --prot; did you mean --port?" + SERVE_HELP),
        (["serve", "--prot=a-b"], "there is no flag --prot; did you mean --port?" + SERVE_HELP),
        (["serve", "--port"], "--port: expected one argument." + SERVE_HELP),
        (["serve", "--port", "x"], "--port must be a whole number between 0 and 65535, got 'x'."),
        (["serve", "a", "b"], "unexpected argument 'b'." + SERVE_HELP),
        (["serve", "a", "--model", "b"], "two models are named, a and --model b: leave one out."),
        (["serve", "--hf-overrides", '{"x": NaN}'], "--hf-overrides must be a JSON object, got '{\"x\": NaN}'."),
        (
            ["serve", "--override-generation-config", '{"temprature": 1}'],
            "--override-generation-config has no key 'temprature'; did you mean temperature? Its keys are temperature, "
            "top_p, top_k, min_p, repetition_penalty, max_new_tokens, do_sample.",
        ),
        (["lab", "--out", "/dev/null", "--", "false"], "--out /dev/null is a file: choose a new folder."),
        (["plan", "--nnodes", "2"], "there is no flag --nnodes. `headrace plan --help` lists all flags."),
        (
            ["bench", "sweep", "--nnodes", "2"],
            "there is no flag --nnodes. `headrace bench sweep --help` lists all flags.",
        ),
        (
            ["bench", "sweep", "run"],
            "unexpected argument 'run': flags alone may follow, or `serve` and flags.",
        ),
        (
            ["bench", "serve", "--port", "70000"],
            "--port: '70000' is no port from 1 to 65535. `headrace bench serve --help` lists all flags.",
        ),
        (["serve", "--grpc"], "--grpc needs gRPC, which this version does not have yet: leave it out."),
        (["serve", "--config", "/nowhere.yaml"], "--config /nowhere.yaml can't be read: " + NO_FILE),
        (["srve"], "there is no command 'srve'; did you mean serve? `headrace --help` lists them."),
        (["chat", "--url=u", "--dtype", "half"], "--url talks to a server that runs already: leave --dtype out."),
        (
            ["chat", "--url=u", "--model", "m"],
            "--url talks to a server that runs already: leave --model out; --model-name chooses among its models.",
        ),
        (["generate", "--prompt-file", "/nowhere.yaml"], "--prompt-file /nowhere.yaml can't be read: " + NO_FILE),
    ],
)
def test_errors_are_one_line(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == f"headrace: error: {sentence}\n"


def test_a_profiled_command_that_fails_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--", "sh", "-c", "exit 3"]) == 3
    assert capsys.readouterr().err == "headrace: the command ended with code 3.\n"


def test_ambiguous_beginning_is_an_error() -> None:
    with pytest.raises(ConfigError, match="ambiguous option: --max-num could match --max-num-batched-tokens, "):
        configure("--max-num", "3")


def test_tokens_after_a_double_dash_stay_as_they_are() -> None:
    assert normalize(["--a_b.c_d=1", "x_y", "--", "--e_f"]) == ["--a-b", '{"c_d": 1}', "x_y", "--", "--e_f"]


def test_merging_keeps_both_sides() -> None:
    assert merged({"a": {"x": 1}, "b": 1}, {"a": {"y": 2}, "b": {"z": 3}}) == {"a": {"x": 1, "y": 2}, "b": {"z": 3}}


def test_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(
        "model: from-file\nport: 1\nmax_model_len: 40k\nno-enable-prefix-caching: true\ntp: 1\n"
        "served-model-name: [a, b]\nhf-overrides: {x: 1}\nseed: null\n"
    )
    monkeypatch.setenv("VLLM_API_KEY", "old")
    monkeypatch.setenv("HEADRACE_API_KEY", "new")
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    config = configure("--config", str(file), "--port", "2", "--served-model-name", "c")
    assert config.non_default() == {
        "model": "from-file",
        "port": 2,
        "max_model_len": 40_000,
        "allow_long_max_model_len": True,
        "server_dev_mode": True,
        "uvicorn_log_level": "debug",
        "enable_prefix_caching": False,
        "served_model_name": ["c"],
        "hf_overrides": {"x": 1},
        "api_key": "***",
    }
    assert config.server.api_key == ["new"]
    assert configure("--config", str(file), "--api-key", "mine").server.api_key == ["mine"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("prot: 1", "in --config FILE, there is no option 'prot'; did you mean port?"),
        ("- 1", "--config FILE must hold flags with their values, such as `port: 8000`."),
        ("a: [", "--config FILE is not YAML: "),
    ],
)
def test_wrong_config_file(content: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as error:
        configure("--config", str(file))
    assert str(error.value).replace(str(file), "FILE").startswith(sentence)


@pytest.mark.parametrize("group", [HEADRACE, bench.GROUP], ids=lambda group: group.prog)
def test_every_command_has_help(group: Group, capsys: pytest.CaptureFixture[str]) -> None:
    before = group.prog.split()[1:]
    assert main(before) == 0
    overview = capsys.readouterr().out
    for command, purpose in group.commands.items():
        assert purpose in overview
        for words in (
            [*before, command, "--help"],
            [*before, "help", command],
            ["help", *before, command],
            [*before, command, "--help=all"],
        ):
            with contextlib.suppress(SystemExit):
                main(words)
            assert capsys.readouterr().out.startswith(f"usage: {group.prog} {command}")


# -- generate, models, collect-env ----------------------------------------------------------------------------------


def prompts(*words: str) -> list[str]:
    parser = FlagParser(prog="headrace generate")
    generate.add_arguments(parser)
    return generate.prompts_of(parser.parse(words))


def test_output_to_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "headrace", "models"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (1, "headrace: error: The output can't be written: the disk is full.\n")


def test_prompts_come_from_arguments_file_or_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompts"
    file.write_text("c\n\nd\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("one\nprompt\n"))
    assert prompts("--prompt", "a", "b", "--prompt-file", str(file)) == ["a", "b", "c", "d"]
    assert prompts() == ["one\nprompt"]  # a final newline is the shell's or the editor's, and would end the thought
    with pytest.raises(ConfigError, match="there is no prompt"):
        prompts()


def test_models_lists_architectures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"LlamaForCausalLM", "Qwen3MoeForCausalLM"} <= {row["architecture"] for row in listed}
    assert main(["models"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(listed)


def test_environment_report_hides_secrets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("HF_TOKEN", "VLLM_API_KEY", "TRITON_SECRET", "HF_ENDPOINT"):
        monkeypatch.setenv(
            name, "https://user:hunter2@host/hunter2" if name != "HF_ENDPOINT" else "https://u:hunter2@h"
        )
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("UNRELATED", "private")
    assert main(["collect-env"]) == 0
    text = capsys.readouterr().out
    assert "hunter2" not in text
    assert "UNRELATED" not in text
    report = collect_env.collect()
    assert report["Environment variables"]["OMP_NUM_THREADS"] == "3"
    assert report["Libraries"]["torch"] in text
    assert set(report) == {"System", "Python", "PyTorch", "CPU", "GPU", "Libraries", "Environment variables"}


class ScriptedLLM:
    """Stands in for ``LLM``: a word is a token, and an answer repeats the prompt's last word as often as asked."""

    made: "list[ScriptedLLM]" = []
    door = SimpleNamespace(formats=SimpleNamespace(reasoning=None), chat_template=None)

    def __init__(self, **options: Any):
        self.config = Config.from_kwargs(**options)
        self.info = SimpleNamespace(max_model_len=12, default_sampling={"temperature": 0.5})
        self.tokenizer = SimpleNamespace(encode=self.encode)
        self.words: list[str] = []
        self.params: list[SamplingParams] = []
        self.closed = False
        self.made.append(self)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        self.words += text.split()
        return list(range(len(self.words) - len(text.split()), len(self.words)))

    def stream(self, prompt: list[int], params: SamplingParams) -> Iterator[RequestOutput]:
        self.params.append(params)
        for _ in range(2):
            yield self.output("", prompt, f"{self.words[prompt[-1]]} ")

    def generate(self, prompts: list[str], params: SamplingParams, use_tqdm: bool) -> list[RequestOutput]:
        self.params.append(params)
        return [self.output(prompt, self.encode(prompt, True), prompt.split()[-1]) for prompt in prompts]

    def output(self, prompt: str, ids: list[int], text: str) -> RequestOutput:
        return RequestOutput("id", prompt, ids, [CompletionOutput(0, text, [1], finish_reason="stop")], True)

    def shutdown(self) -> None:
        self.closed = True


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> list[ScriptedLLM]:
    ScriptedLLM.made = []
    monkeypatch.setitem(sys.modules, "headrace.frontend.llm", SimpleNamespace(LLM=ScriptedLLM))
    monkeypatch.setattr(
        "headrace.frontend.chat.render_chat", lambda _, messages, **how: " ".join(m["content"] for m in messages)
    )
    return ScriptedLLM.made


def test_generate(llm: list[ScriptedLLM], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "m", "--prompt", "to be", "--max-tokens", "3", "--dtype", "half", "--seed", "4"]) == 0
    assert capsys.readouterr().out == "be\n"
    assert llm[0].config.non_default() == {"model": "m", "dtype": "half", "seed": 4}
    assert (llm[0].params[0].max_tokens, llm[0].params[0].temperature, llm[0].closed) == (3, 0.5, True)
    assert main(["generate", "--json", "--prompt", "to be", "or not"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["outputs"][0]["text"] for line in lines] == ["be", "not"]
    assert lines[1]["prompt_tokens"] == 2
    assert main(["generate", "--prompt", "to be", "or not"]) == 0
    assert capsys.readouterr().out == "to bebe\n\nor notnot\n\n"


def test_chat_in_this_process(
    llm: list[ScriptedLLM], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one two three\nfour five six\nseven\n" + "long " * 10 + "\n"))
    assert main(["chat", "m", "--temperature", "0"]) == 0
    out, err = capsys.readouterr()
    assert out == "three three \nsix six \nseven seven \n"
    assert err.splitlines() == [
        "[the 2 oldest messages no longer fit and are forgotten]",
        "headrace: the message is too long for the model's context: send a shorter one.",
    ]
    assert (llm[0].params[0].temperature, llm[0].params[0].max_tokens, llm[0].closed) == (0.0, None, True)


def test_complete_in_this_process(llm: list[ScriptedLLM], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["complete", "-q", "again and", "--top-k", "3", "--stop", "x"]) == 0
    assert capsys.readouterr().out == "and and \n"
    params = llm[0].params[0]
    assert (params.max_tokens, params.top_k, params.stop, params.temperature) == (128, 3, ["x"], 0.5)


# -- chat and complete ----------------------------------------------------------------------------------------------


class CountingTalker:
    """Answers each message with its number; its context holds ``limit`` messages."""

    def __init__(self, limit: int):
        self.limit = limit
        self.asked: list[Messages] = []

    def complete(self, prompt: str) -> Iterator[str]:
        yield prompt

    def chat(self, messages: Messages) -> Iterator[str]:
        self.asked.append(messages)
        yield "answer "
        yield str(len(self.asked))

    def render(self, messages: Messages) -> str:
        return "|".join(message["content"] for message in messages)

    def fits(self, messages: Messages) -> bool:
        return len(messages) <= self.limit


def test_conversation_keeps_its_history_and_drops_the_oldest_turns(capsys: pytest.CaptureFixture[str]) -> None:
    model = CountingTalker(limit=4)
    conversation = chat.Conversation(model, "be brief", show_prompt=True)
    for line in ("one", "two", "three"):
        conversation.enter(line)
    assert [model.render(messages) for messages in model.asked] == [
        "be brief|one",
        "be brief|one|answer 1|two",
        "be brief|two|answer 2|three",
    ]
    out, err = capsys.readouterr()
    assert "--- prompt ---\nbe brief|one|answer 1|two\n--- answer ---\nanswer 2\n" in out
    assert err == "[the 2 oldest messages no longer fit and are forgotten]\n"
    conversation.enter("/reset")
    assert conversation.messages == [{"role": "system", "content": "be brief"}]
    model.limit = 1
    with pytest.raises(RequestError, match="too long"):
        conversation.enter("four")
    assert len(conversation.messages) == 1


def test_ctrl_c_stops_an_answer_but_not_the_chat(capsys: pytest.CaptureFixture[str]) -> None:
    closed = []

    def interrupted(messages: Messages) -> Iterator[str]:
        try:
            yield "some "
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    model = CountingTalker(limit=9)
    model.chat = interrupted  # type: ignore[method-assign]
    conversation = chat.Conversation(model)
    conversation.say("hello")
    assert closed
    assert conversation.messages[-1] == {"role": "assistant", "content": "some "}
    assert capsys.readouterr().out == "some  [stopped]\n"


def test_room_for_an_answer() -> None:
    assert (room(8192, None), room(400, None), room(8192, 50), room(2, None)) == (1024, 100, 50, 1)


class ScriptedServer(BaseHTTPRequestHandler):
    """A small server of the OpenAI API: counts a word as a token, and repeats the last message in two pieces."""

    requests: list[tuple[str, dict[str, Any], str | None]] = []

    def do_GET(self) -> None:
        self.reply({"data": [{"id": "first", "max_model_len": 20}, {"id": "second"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append((self.path, body, self.headers["Authorization"]))
        if body["model"] not in ("first", "second"):
            self.reply({"error": {"message": "no such model"}}, 404)
        elif self.path == "/tokenize":
            words = " ".join(message["content"] for message in body["messages"]).split()
            self.reply({"count": len(words), "tokens": list(range(len(words)))})
        elif self.path == "/detokenize":
            self.reply({"prompt": f"rendered {len(body['tokens'])}"})
        else:
            self.stream(body)

    def stream(self, body: dict[str, Any]) -> None:
        chat = "messages" in body
        text = body["messages"][-1]["content"] if chat else body["prompt"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for piece in (text[:2], text[2:]):
            choice = {"delta": {"content": piece}} if chat else {"text": piece}
            self.wfile.write(f": comment\n\ndata: {json.dumps({'choices': [choice]})}\n\n".encode())
        if text == "break off":
            self.wfile.write(b'data: {"error": {"message": "out of luck"}}\n\n')
        self.wfile.write(b"data: [DONE]\n\n")

    def reply(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    ScriptedServer.requests = []
    http = ThreadingHTTPServer(("127.0.0.1", 0), ScriptedServer)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


def test_chat_with_a_server(server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("hello there\n\none two three four five six seven\nbye\n/exit\nnever\n")
    )
    command = [
        "chat",
        "--url",
        f"{server}/v1/",
        "--api-key",
        "k",
        "--temperature",
        "0",
        "--max-tokens",
        "5",
        "--show-prompt",
    ]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        *("--- prompt ---", "rendered 2", "--- answer ---", "hello there"),
        *("--- prompt ---", "rendered 11", "--- answer ---", "one two three four five six seven"),
        *("--- prompt ---", "rendered 15", "--- answer ---", "bye"),
    ]
    assert err == "[the 2 oldest messages no longer fit and are forgotten]\n"
    sent = [body for path, body, _ in ScriptedServer.requests if path == "/v1/chat/completions"]
    assert [len(body["messages"]) for body in sent] == [1, 3, 3]
    assert (sent[0]["model"], sent[0]["temperature"], sent[0]["max_tokens"]) == ("first", 0.0, 5)
    assert {key for _, _, key in ScriptedServer.requests} == {"Bearer k"}


def test_what_a_terminal_cannot_write_is_replaced(server: str) -> None:
    command = [sys.executable, "-m", "headrace", "chat", "--url", server]
    streams = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, input=b"\xff\n", capture_output=True, env=streams)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"?\n", b"")


def test_complete_with_a_server(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    without_scheme = server.removeprefix("http://")
    assert main(["complete", "--url", without_scheme, "--model-name", "second", "-q", "continue me"]) == 0
    assert capsys.readouterr().out == "continue me\n"
    path, body, key = ScriptedServer.requests[-1]
    assert (path, body["model"], body["prompt"], body["max_tokens"], key) == (
        "/v1/completions", "second", "continue me", 128, None,
    )  # fmt: skip


def test_trouble_with_a_server(
    server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["chat", "--url", server, "--model-name", "third", "-q", "hi"]) == 1
    assert capsys.readouterr().err == (
        "headrace: error: the server answered 404 to /v1/chat/completions: no such model\n"
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("break off\nstill here\n"))
    assert main(["complete", "--url", server]) == 0
    out, err = capsys.readouterr()
    assert out == "break off\nstill here\n"
    assert err == "headrace: the server broke off: out of luck\n"
    assert main(["chat", "--url", "http://127.0.0.1:9/v1", "-q", "hi"]) == 1
    assert capsys.readouterr().err.startswith("headrace: error: no server answers at http://127.0.0.1:9: ")


def test_namespace_of_a_command_holds_no_defaults_of_options() -> None:
    parser = FlagParser(prog="headrace serve")
    serve.add_arguments(parser)
    assert parser.parse([]) == argparse.Namespace(model_argument=None, config=None)
