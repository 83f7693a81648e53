"""`latentdiff serve`: validate the options and run the server."""

import ipaddress
import os
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentdiff.errors import InputError

KEY_VARIABLE = "LATENTDIFF_KEY"


@dataclass(frozen=True)
class Request:
    """The options of the command. models, loras, upscalers: PATH or NAME=PATH. limits: changed numbers of `Limits`.

    options: for opening the models. train: the folder from which fine-tunes can copy pictures; None disables
    fine-tuning. runs: the folder of fine-tunes.
    """

    models: list[str]
    loras: list[str]
    embeddings: list[Path]
    upscalers: list[str]
    host: str
    port: int
    key: str | None
    origins: list[str]
    exact_batch: int | None
    memory_limit: float | None
    safety: str | None
    options: dict[str, Any]
    limits: dict[str, Any]
    train: Path | None = None
    runs: Path | None = None


def run(request: Request) -> None:
    """Check the options, then serve until SIGTERM or Ctrl-C."""
    key = request.key or os.environ.get(KEY_VARIABLE) or None
    if not _is_local(request.host) and key is None:
        raise InputError(
            f"--host {request.host} is reachable from other machines and requires a key; set {KEY_VARIABLE} or --key"
        )
    try:
        import uvicorn

        from latentdiff.serving.app import create_app
    except ImportError as error:
        raise InputError(f"serving needs packages that are not installed ({error.name}); "
                         'pip install "latentdiff[serve]"') from error  # fmt: skip
    from latentdiff.serving.logs import start_logging
    from latentdiff.serving.process import COLLECT_SECONDS, DrainingServer
    from latentdiff.serving.server_state import Server, Settings

    finetunes = _finetunes(request)
    start_logging()
    engine = _engine(request, finetunes)
    hosts = tuple(dict.fromkeys((*Settings.hosts, request.host)))
    listener = _listener(request.host, request.port)
    server = Server(engine, Settings(key, tuple(request.origins), hosts), finetunes=finetunes)
    config = uvicorn.Config(
        create_app(server),
        log_config=None,
        access_log=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(COLLECT_SECONDS),  # for clients that never finish a request or read its response
    )
    DrainingServer(config, server).run(sockets=[listener])


def _finetunes(request: Request) -> Any:
    """The fine-tunes of the server; None if fine-tuning is disabled. Raises InputError."""
    from latentdiff.serving.finetunes.folder import FineTunes

    if request.train is None:
        if request.runs is not None:
            raise InputError(
                f"--runs {request.runs} is the folder for fine-tuning, which is off; pass --train, or omit it"
            )
        return None
    if not request.train.is_dir():
        raise InputError(f"--train {request.train} is not a folder; create it, or pass a folder with pictures")
    return FineTunes(request.train, request.runs or Path("runs"))


def _engine(request: Request, finetunes: Any) -> Any:
    """The engine, with the models, LoRAs, learned words and upscalers of the options and the LoRAs of fine-tunes."""
    from latentdiff.checkpoints.textual_inversion import find_learned
    from latentdiff.safety import ContentChecker
    from latentdiff.serving.engine import Engine
    from latentdiff.serving.limits import Limits
    from latentdiff.serving.models import LoraSpec, ModelSpec, ModelStore
    from latentdiff.serving.upscalers import UpscalerStore

    models = [ModelSpec(*named, options) for named, options in _models(request)]
    embeddings = [find_learned(path) for path in request.embeddings]
    loras = [LoraSpec(*_named_lora(word)) for word in request.loras]
    loras += [LoraSpec(path.stem, path) for one in (finetunes.all() if finetunes else []) for path in one.loras]
    limit = None if request.memory_limit is None else int(request.memory_limit * 2**30)
    store = ModelStore(models, loras, limit, embeddings)
    upscalers = UpscalerStore(dict(map(_named_upscaler, request.upscalers)), bool(request.options.get("allow_pickle")))
    checker = None if request.safety is None else ContentChecker(request.safety)
    limits = replace(Limits(), **request.limits)
    return Engine(store, limits, request.exact_batch, upscalers=upscalers, checker=checker)


def _models(request: Request) -> list[tuple[tuple[str, str | None], dict[str, Any]]]:
    """Name and path of each model, with the options for opening it: models in single files have no variants.

    Raises InputError for a variant if all are single files.
    """
    from latentdiff.checkpoints.locate_model import has_folder

    options, variant = request.options, request.options.get("variant")
    of_files = {name: value for name, value in options.items() if name != "variant"}

    def has_variants(path: str | None) -> bool:
        return path is None or has_folder(path, options.get("vae"), options.get("unet"))

    models: list[tuple[str, str | None]] = [*map(_named, request.models)] or [("emoji", None)]
    if variant and not any(has_variants(path) for _, path in models):
        raise InputError(f"--variant {variant} is of the files in a folder, and all models are files; omit it")
    return [(model, options if has_variants(model[1]) else of_files) for model in models]


def _listener(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(
            f"--host {host} --port {port} cannot be used ({error.strerror}); choose another port with --port"
        ) from error


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _named(word: str) -> tuple[str, str]:
    """Parse NAME=PATH, or a path, whose last part becomes the name."""
    name, equals, path = word.partition("=")
    return (name, path) if equals and name else (Path(word).stem or word, word)


def _named_lora(word: str) -> tuple[str, Path]:
    from latentdiff.checkpoints.lora_reader import find_lora
    from latentdiff.checkpoints.lora_stack import default_name

    name, text = _named(word)
    file = find_lora(Path(text))
    return (name if "=" in word else default_name(file)), Path(text)


def _named_upscaler(word: str) -> tuple[str, Path]:
    name, text = _named(word)
    if not (file := Path(text)).is_file():
        raise InputError(f"--upscaler {file} is not a file; pass an ESRGAN file")
    return name, file
