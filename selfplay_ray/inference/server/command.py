"""``selfplay serve``, ``python -m selfplay_ray.inference.server``: a model on a port."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import uvicorn
from pydantic import ByteSize, TypeAdapter, ValidationError

from selfplay_ray.config_sources import SentenceParser
from selfplay_ray.errors import ClusterError, ConfigError
from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.peft import AdapterShape
from selfplay_ray.inference.server.app import ServerLimits, create_app
from selfplay_ray.inference.server.guards import is_loopback
from selfplay_ray.inference.server.served import ServedModels
from selfplay_ray.lora import LoRASettings
from selfplay_ray.models import SMOLLM2, resolve_model

KEY_VARIABLE = "SELFPLAY_API_KEY"
GRACE_SECONDS = 5


def main(argv: Sequence[str]) -> int:
    """Serve until interrupted.

    Raises:
        ConfigError: a flag is wrong, or another host than loopback is asked for without a key.
        ClusterError: the port can't be had.
        ModelError: there is no such model.
    """
    options = _parse(argv)
    with ExitStack() as stack:
        # Before the model, which takes its time:
        listener = stack.enter_context(bind(options.host, options.port))
        folder = resolve_model(options.model)
        chat = ChatTokenizer(folder)
        lora = None
        if options.lora_rank:
            lora = LoRASettings(options.lora_rank, options.lora_scale, options.lora_layers)
        engine = stack.enter_context(_engine(folder, lora, options))
        shape = AdapterShape(engine.adapter_shapes, lora.scale) if lora else None
        models = ServedModels(engine, options.served_model_name or options.model, shape)
        limits = ServerLimits(generations=options.max_waiting + options.max_batch_size)
        app = create_app(models, chat, host=options.host, api_key=options.api_key, limits=limits)
        sys.stdout.write(f"serving {models.base} on {_url(listener)}/v1; Ctrl-C ends it\n")
        sys.stdout.flush()
        server_for(app).run(sockets=[listener])
    return 0


def server_for(app: object) -> uvicorn.Server:
    """uvicorn as we run it: no access log, and at the end it waits a few seconds for answers in progress."""
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
    )
    return uvicorn.Server(config)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on ``host`` and ``port`` (0: any that is free).

    Raises:
        ClusterError: it can't be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ClusterError(f"there is no host {host!r} to listen on: {error.strerror or error}") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ClusterError(
            f"port {port} on {host} can't be had: {error.strerror}; choose another with --port"
        ) from None
    return listener


def _engine(folder: Path, lora: LoRASettings | None, options: argparse.Namespace) -> Engine:
    return Engine(
        folder,
        lora=lora,
        max_adapters=options.max_adapters,
        max_batch_size=options.max_batch_size,
        max_waiting=options.max_waiting,
        kv_cache_bytes=options.kv_cache_bytes,
        prefix_cache_bytes=options.prefix_cache_bytes,
        prefix_seconds=options.prefix_seconds,
    )


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = SentenceParser(
        prog="selfplay serve",
        description="Serve a model over HTTP, as OpenAI and vLLM do.",
        allow_abbrev=False,
    )
    flags = [
        parser.add_argument(
            "--model",
            "--model-path",
            default=SMOLLM2,
            metavar="NAME",
            help=f"Model: {SMOLLM2} (default), a local folder, or a hub id.",
        ),
        parser.add_argument(
            "--served-model-name", metavar="NAME", help="What requests call it (default: as --model)."
        ),
        parser.add_argument(
            "--lora-rank", type=int, default=8, metavar="INT", help="Rank of adapters; 0: none (default: 8)."
        ),
        parser.add_argument(
            "--lora-scale", type=float, default=4.0, metavar="NUMBER", help="Factor on adapters (default: 4)."
        ),
        parser.add_argument(
            "--lora-layers", type=int, default=-1, metavar="INT", help="Layers with adapters (default: all)."
        ),
        parser.add_argument("--host", default="127.0.0.1", help="Where to listen (default: 127.0.0.1)."),
        parser.add_argument("--port", type=int, default=8000, metavar="INT", help="Port (default: 8000)."),
        parser.add_argument(
            "--api-key",
            default=os.environ.get(KEY_VARIABLE),
            metavar="KEY",
            help=f"Only serve who sends this key; needed beyond loopback (default: ${KEY_VARIABLE}).",
        ),
        parser.add_argument(
            "--max-adapters",
            "--max-loras",
            type=int,
            default=16,
            metavar="INT",
            help="Adapters loaded at once (default: 16).",
        ),
        parser.add_argument(
            "--kv-cache-bytes",
            "--kv-cache-memory-bytes",
            type=_bytes,
            metavar="SIZE",
            help="Memory for keys and values, as 2GiB or 500MB (default: a quarter of the memory).",
        ),
        parser.add_argument(
            "--prefix-cache-bytes",
            type=_bytes,
            metavar="SIZE",
            help="How much of it may be kept for prompts that begin alike (default: a quarter of it).",
        ),
        parser.add_argument(
            "--prefix-seconds",
            type=float,
            default=600.0,
            metavar="NUMBER",
            help="For how long it is, if of no use meanwhile (default: 600).",
        ),
        parser.add_argument(
            "--max-batch-size", type=int, default=32, metavar="INT", help="Sequences at once (default: 32)."
        ),
        parser.add_argument(
            "--max-waiting", type=int, default=1024, metavar="INT", help="More that may wait (default: 1024)."
        ),
    ]
    options = parser.parse_all(argv, [option for flag in flags for option in flag.option_strings])
    _check(options)
    return options


def _bytes(text: str) -> int:
    try:
        size = TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        size = ByteSize(-1)
    if size < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write it as 2GiB, 500MB or a number of bytes")
    return int(size)


def _check(options: argparse.Namespace) -> None:
    if not 0 <= options.port <= 65535:
        raise ConfigError(f"--port {options.port} is not possible: it must be between 0 and 65535")
    if (
        min(options.lora_rank, options.max_waiting) < 0
        or min(options.max_batch_size, options.max_adapters) < 1
    ):
        raise ConfigError(
            "--lora-rank and --max-waiting must be 0 or more, --max-batch-size and --max-adapters 1 or more"
        )
    options.api_key = options.api_key or None
    if options.api_key is None and not is_loopback(options.host):
        raise ConfigError(
            f"--host {options.host} lets others in: give --api-key, or set {KEY_VARIABLE}, so that not everybody is"
        )


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
