"""The engine in a process of its own: ``python -m headrace.engine.process``, started by engine/client.py.

Owns the process's life: it reads its orders from stdin once, then keeps stdin open as a lifeline. When its parent
dies, by whatever signal, the kernel kills it or stdin ends, and it goes. Knows neither text nor HTTP.
"""

import ctypes
import gc
import logging
import os
import signal
import sys
import threading
import traceback

import msgspec
import zmq

from headrace.config import Config
from headrace.engine.core import STATS_INTERVAL, Engine
from headrace.engine.threads import wait_briefly
from headrace.errors import ConfigError
from headrace.logs import configure
from headrace.models.source import ModelFiles
from headrace.types import Abort, Fatal, FromEngine, Profile, ResetPrefixCache, Shutdown, Submit, ToEngine

PR_SET_PDEATHSIG = 1  # from linux/prctl.h
NEW_OBJECTS = 100_000  # between two garbage collections: they hold a step up, and look through all that requests hold


class Boot(msgspec.Struct):
    """What the parent tells the new process: a line of JSON."""

    config: bytes
    files: ModelFiles
    to_engine: str  # ZeroMQ address the engine pulls from
    from_engine: str  # and the one it pushes to


def main() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # the parent decides when to stop: it may have requests to finish
    boot = msgspec.json.decode(sys.stdin.buffer.readline(), type=Boot)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    config = Config.from_json(boot.config)
    configure(config.server.uvicorn_log_level, config.server.log_config_file, shares_terminal=True)
    with zmq.Context() as context:
        link = Link(context, boot)
        try:
            serve(config, boot.files, link)
        except ConfigError as error:
            link.send(Fatal(str(error), user_error=True))
            sys.exit(2)
        except Exception as error:
            logging.getLogger(__name__).critical("The engine failed:\n%s", traceback.format_exc())
            link.send(Fatal(f"{type(error).__name__}: {error}"))
            sys.exit(1)
        finally:
            link.close()


class Link:
    """The engine's ends of its two sockets, typed."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], boot: Boot):
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
        self._pull, self._push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
        self._pull.set_hwm(0)
        self._push.set_hwm(0)
        self._push.linger = 1000  # milliseconds that the last words get to leave
        self._pull.connect(boot.to_engine)
        self._push.connect(boot.from_engine)

    def send(self, message: FromEngine) -> None:
        self._push.send(self._encoder.encode(message))

    def receive(self, timeout: float) -> ToEngine | None:
        """The next message, waiting up to ``timeout`` seconds for it; None if there is none."""
        if not self._pull.poll(int(timeout * 1000)):
            return None
        return self._decoder.decode(self._pull.recv())

    def close(self) -> None:
        self._pull.close()
        self._push.close()


def serve(config: Config, files: ModelFiles, link: Link) -> None:
    """Build the engine, say so, and step it until told to stop."""
    wait_briefly()
    from headrace.engine.start import build_engine

    engine = build_engine(config, files, link.send)
    gc.set_threshold(NEW_OBJECTS)
    engine.info.pid = os.getpid()
    link.send(engine.info)
    while take_messages(engine, link):
        outputs = engine.outputs(engine.step())
        if outputs is not None:
            link.send(outputs)


def take_messages(engine: Engine, link: Link) -> bool:
    """Hand over what has come, waiting a while if there is nothing else to do; False to stop."""
    message = link.receive(0 if engine.has_work or engine.runner.prepare() else STATS_INTERVAL)
    while message is not None:
        match message:
            case Submit():
                engine.submit(message)
            case Abort():
                engine.abort(message.request_ids)
            case ResetPrefixCache(running):
                engine.reset_prefix_cache(running)
            case Profile():
                link.send(engine.profile(message.start))
            case Shutdown():
                return False
        message = link.receive(0)
    return True


def _die_with_parent() -> None:
    """Block until stdin ends, which is when the parent's end of it closes, then leave at once."""
    while os.read(sys.stdin.fileno(), 1):  # not sys.stdin: its lock, held while waiting, would break a normal exit
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
