"""The models of a server: opened at first use; above a memory limit, the least recently used one is dropped."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from latentdiff.checkpoints.lora_reader import find_lora
from latentdiff.checkpoints.model_source import ModelSource
from latentdiff.checkpoints.textual_inversion import find_learned
from latentdiff.errors import CheckpointError, InputError, LatentDiffError, did_you_mean, shorten
from latentdiff.inputs.model_limits import ModelLimits
from latentdiff.pipeline import LatentDiffusionPipeline
from latentdiff.previews import Previewer
from latentdiff.recipe.model_hash import hash_model
from latentdiff.serving.errors import InternalError, NotFoundError, as_serving_error
from latentdiff.serving.worker import Worker

log = logging.getLogger("latentdiff.serving")
RETRY_SECONDS = 5.0  # before a model that could not be loaded is tried again


@dataclass(frozen=True)
class ModelSpec:
    """A model by its name in requests. path: as for `from_pretrained`; None is the bundled model."""

    name: str
    path: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def allow_pickle(self) -> bool:
        """Whether pickle files may be read, including those of its LoRAs and embeddings."""
        return bool(self.options.get("allow_pickle"))

    @property
    def disk_size(self) -> int:
        """Bytes of its weight files, as far as they are local."""
        if self.path is None or not (path := Path(self.path)).exists():
            return 0
        files = path.rglob("*.safetensors") if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files)


@dataclass(frozen=True)
class LoraSpec:
    """A LoRA by its name in requests."""

    name: str
    path: Path


@dataclass(frozen=True)
class ModelFacts:
    """Properties that are known after a model has been loaded, and are kept when it is dropped.

    words: the file of each learned word.
    """

    limits: ModelLimits
    dtype: str
    source: ModelSource
    words: dict[str, Path]
    hash: str
    preview: Previewer

    @classmethod
    def of(cls, pipe: LatentDiffusionPipeline, words: dict[str, Path]) -> "ModelFacts":
        """The facts about a model that was opened from files."""
        assert pipe.source is not None
        dtype, files = str(pipe.dtype).removeprefix("torch."), dict.fromkeys(words.values())
        return cls(pipe.limits, dtype, pipe.source, words, hash_model(pipe.source, *files), Previewer(pipe))


class ModelStore:
    """Models by name. One thread loads models, while those in use continue.

    limit: bytes of weights in memory at once; None means no limit. embeddings: files of learned words for all models.
    unused: loaded models of which no image has started since. The engine assigns `on_change`, which is called after a
    model was loaded or failed to load, and when a load waits for memory, and `in_use`, the names of the models that are
    sampling.
    """

    def __init__(
        self,
        models: list[ModelSpec],
        loras: list[LoraSpec] | None = None,
        limit: int | None = None,
        embeddings: Sequence[Path] = (),
    ) -> None:
        self.specs = {spec.name: spec for spec in models}
        self.loras = {spec.name: spec for spec in loras or []}
        if len(self.specs) != len(models) or len(self.loras) != len(loras or []):
            raise InputError("two models or two LoRAs have the same name; write NAME=PATH to rename one")
        self.default, self.limit, self.embeddings = models[0].name, limit, embeddings
        self.on_change: Callable[[], None] = lambda: None
        self.in_use: Callable[[], set[str]] = set
        self.loading: set[str] = set()
        self.unused: set[str] = set()
        self.facts: dict[str, ModelFacts] = {}
        self._hashes: dict[tuple[str, ...], str] = {}
        self._pipes: OrderedDict[str, LatentDiffusionPipeline] = OrderedDict()
        self._failures: dict[str, tuple[float, Exception]] = {}
        self._sizes: dict[str, int] = {}
        self._lock = threading.RLock()
        self._making_room = False
        self._loader = Worker("latentdiff-loader")

    def find(self, name: str | None) -> str:
        """The name of a known model; the default model for None. Raises NotFoundError."""
        if name is None:
            return self.default
        if name not in self.specs:
            raise NotFoundError(f"model={shorten(name)} is unknown; {did_you_mean(name, self.specs)}", "model")
        return name

    def find_lora(self, name: str) -> str:
        """The name of a known LoRA. Raises NotFoundError."""
        if not self.loras:
            raise NotFoundError(f"LoRA {shorten(name)} is unknown; this server has none, start it with --lora", "loras")
        if name not in self.loras:
            raise NotFoundError(f"LoRA {shorten(name)} is unknown; {did_you_mean(name, self.loras)}", "loras")
        return name

    def add_lora(self, lora: LoraSpec) -> None:
        """Make a LoRA available to requests; loaded models read it at its first use."""
        self.loras = {**self.loras, lora.name: lora}

    def load_new_loras(self, pipe: LatentDiffusionPipeline, names: Iterable[str]) -> None:
        """Read LoRAs that were added after the model was loaded.

        Raises CheckpointError for a LoRA that does not match the model.
        """
        for name in names:
            if name not in pipe.adapters:
                pipe.load_lora(self.loras[name].path, name, weight=0.0)

    def get(self, name: str) -> LatentDiffusionPipeline | None:
        """The model if it is loaded; otherwise None, and loading starts.

        Raises the error of a failed load for a few seconds after it.
        """
        with self._lock:
            if name in self._pipes:
                self._pipes.move_to_end(name)
                return self._pipes[name]
            failed_at, failure = self._failures.get(name, (0.0, None))
            if failure is not None and time.monotonic() - failed_at < RETRY_SECONDS:
                raise failure
            if name not in self.loading:
                self._failures.pop(name, None)
                self.loading.add(name)
                self._loader.submit(partial(self._load, name))
            return None

    def hash_with(self, name: str, loras: list[str]) -> str:
        """The hash of a model that has been loaded, with its LoRAs, as recipes store it."""
        if not loras:
            return self.facts[name].hash
        key = (name, *loras)
        if key not in self._hashes:
            files = [find_lora(self.loras[lora].path) for lora in loras]
            facts = self.facts[name]
            self._hashes[key] = hash_model(facts.source, *files, *dict.fromkeys(facts.words.values()))
        return self._hashes[key]

    @property
    def loaded(self) -> list[str]:
        """Names of the loaded models, the least recently used first."""
        with self._lock:
            return list(self._pipes)

    @property
    def size(self) -> int:
        """Bytes of the weights that are loaded."""
        with self._lock:
            return sum(self._sizes[name] for name in self._pipes)

    def may_start(self, name: str) -> bool:
        """Whether images of a model may be started. While a load waits for memory, only those of unused models, so that
        the others become idle.
        """
        return not self._making_room or name in self.unused

    def drop_idle(self, busy: set[str]) -> None:
        """Drop the least recently used model that is not busy, if a load waits for memory. The engine calls it between
        steps, so that no image of the model starts meanwhile.
        """
        with self._lock:
            idle = [name for name in self._pipes if name not in busy | self.loading]
            if self._making_room and idle:
                del self._pipes[idle[0]]

    def unload(self, name: str) -> None:
        """Drop a model that is not in use."""
        with self._lock:
            if name not in self.in_use():
                self._pipes.pop(name, None)

    def close(self) -> None:
        """Stop loading."""
        self._loader.close(finish=False)

    def _load(self, name: str) -> None:
        try:
            spec = self.specs[name]
            self._make_room(name, self._sizes.get(name, spec.disk_size))
            pipe = LatentDiffusionPipeline.from_pretrained(spec.path, **spec.options)
            self._add_loras(name, pipe)
            words = self._add_words(name, pipe)
            facts = self.facts.get(name) or ModelFacts.of(pipe, words)
            with self._lock:
                self._pipes[name], self.facts[name] = pipe, facts
                self._sizes[name] = _bytes(pipe)
                self.unused.add(name)
            log.info("loaded", extra={"fields": {"model": name, "bytes": self._sizes[name]}})
            self._make_room(name, 0)
        except Exception as error:
            log.error("load_failed", extra={"fields": {"model": name, "error": str(error)}})
            self._failures[name] = (
                time.monotonic(),
                InternalError(f"{name} cannot be loaded: {as_serving_error(error)}"),
            )
        finally:
            with self._lock:
                self.loading.discard(name)
            self.on_change()

    def _add_loras(self, name: str, pipe: LatentDiffusionPipeline) -> None:
        for lora in list(self.loras.values()):
            try:
                pipe.load_lora(lora.path, lora.name, weight=0.0, allow_pickle=self.specs[name].allow_pickle)
            except LatentDiffError as error:
                _warn("lora_does_not_fit", model=name, lora=lora.name, error=str(error))

    def _add_words(self, name: str, pipe: LatentDiffusionPipeline) -> dict[str, Path]:
        words: dict[str, Path] = {}
        for path in self.embeddings:
            try:
                file = find_learned(path)
                learned = pipe.load_textual_inversion(file, self.specs[name].allow_pickle)
                words |= dict.fromkeys(learned, file)
            except LatentDiffError as error:
                _warn("embedding_does_not_fit", model=name, embedding=str(path), error=str(error))
        return words

    def _make_room(self, name: str, needed: int) -> None:
        """Wait until the engine has dropped so many idle models that `needed` more bytes fit."""
        if self.limit is None:
            return
        if needed > self.limit:
            raise CheckpointError(
                f"{name} needs {needed} bytes, above the memory limit of {self.limit}; raise the limit"
            )
        try:
            while self.size + needed > self.limit:
                if self.loaded in ([], [name]):
                    break
                self._making_room = True
                self.on_change()
                threading.Event().wait(0.02)
        finally:
            self._making_room = False


def _warn(event: str, **fields: str) -> None:
    log.warning(event, extra={"fields": fields})


def _bytes(pipe: LatentDiffusionPipeline) -> int:
    parts = (pipe.denoiser, pipe.vae, pipe.text)
    return sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
