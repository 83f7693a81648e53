"""What every config read from a model's JSON files shares: bounded numbers, and reading and writing diffusers' keys.

Every number is bounded: a file from anywhere must not make the package build for hours or overflow.
"""

from typing import Annotated, Any, Self

from pydantic import Field, ValidationError

from latentdiff.config.base import Config
from latentdiff.errors import CheckpointError

Channels = Annotated[int, Field(ge=1, le=2**16)]
Layers = Annotated[int, Field(ge=1, le=256)]
Depth = Annotated[int, Field(ge=0, le=256)]
Heads = Annotated[int, Field(ge=1, le=1024)]
Tokens = Annotated[int, Field(ge=1, le=2**24)]
TokenId = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Epsilon = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(gt=1e-6, lt=1e6)]


class ModelConfig(Config):
    """A config that reads and writes diffusers' JSON: `class_name` there, and the keys whose one value we compute."""

    @classmethod
    def read(cls, raw: dict[str, Any], where: str) -> Self:
        """Check a diffusers dictionary; keys that change nothing are left out.

        Raises CheckpointError naming `where`, the key and its value when it asks for what this package lacks.
        """
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
        """The dictionary that diffusers reads back."""
        return {"_class_name": self._class_name(), **self.model_dump(mode="json")}

    @classmethod
    def _class_name(cls) -> str:
        raise NotImplementedError

    @classmethod
    def _only(cls) -> dict[str, tuple[Any, ...]]:
        """Keys of diffusers that would change the computation, with the values that mean what we compute."""
        return {}
