"""Base of the configs in model folders: bounded numbers, and reading and writing diffusers' keys.

Every number is bounded, so that an untrusted file cannot cause an overflow or an excessively large model.
"""

import warnings
from collections.abc import Collection
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError

from latentdiff.config.base import Config
from latentdiff.errors import CheckpointError, shorten

Channels = Annotated[int, Field(ge=1, le=2**16)]
Layers = Annotated[int, Field(ge=1, le=256)]
Depth = Annotated[int, Field(ge=0, le=256)]
Heads = Annotated[int, Field(ge=1, le=1024)]
Tokens = Annotated[int, Field(ge=1, le=2**24)]
TokenId = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Epsilon = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(gt=1e-6, lt=1e6)]


class ModelConfig(Config):
    """A config in diffusers' JSON format, with its `class_name` and the keys that have only one supported value."""

    @classmethod
    def read(cls, raw: dict[str, Any], where: str) -> Self:
        """Validate a diffusers dictionary; warns of keys that the class does not have.

        Raises CheckpointError naming `where`, the key and its value if it requires an unsupported feature.
        """
        others = raw.keys() - {*cls.model_fields, *cls._only(), *cls._without_effect()}
        if unknown := sorted(key for key in others if not key.startswith("_")):  # as _diffusers_version does
            names = shorten(", ".join(unknown))
            warnings.warn(f"{where}: unknown keys have no effect: {names}; correct or remove them", stacklevel=3)
        for key, supported in cls._only().items():
            if key in raw and raw[key] not in supported:
                raise CheckpointError(
                    f"{where}: {key}={raw[key]!r} is not supported; only {supported[0]!r} is, use another checkpoint"
                )
        try:
            return cls.model_validate({k: v for k, v in raw.items() if k in cls.model_fields})
        except ValidationError as error:
            first = error.errors()[0]
            key, value = ".".join(str(part) for part in first["loc"]), repr(first["input"])[:80]
            problem = first["msg"] if first["type"] == "value_error" else f"{key}={value}: {first['msg']}"
            raise CheckpointError(f"{where}: {problem.removeprefix('Value error, ')}; correct the file") from error

    def write(self) -> dict[str, Any]:
        """The dictionary in diffusers' format."""
        return {"_class_name": self._class_name(), **self.model_dump(mode="json")}

    @classmethod
    def _class_name(cls) -> str:
        raise NotImplementedError

    @classmethod
    def _without_effect(cls) -> Collection[str]:
        """The other keys of the class of diffusers or transformers, which do not affect the computation."""
        return ()

    @classmethod
    def _only(cls) -> dict[str, tuple[Any, ...]]:
        """Keys of diffusers that affect the computation, with the only values that are supported."""
        return {}
