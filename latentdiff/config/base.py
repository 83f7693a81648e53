"""Load YAML configs and validate them once, with errors that name the key."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from latentdiff.errors import InputError, did_you_mean


class Config(BaseModel):
    """Base of all configs: immutable, validated, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def refuse_given(config: BaseModel, names: Iterable[str], reason: str, group: str = "") -> None:
    """Raise ValueError for the first of these settings, which have no effect, that differs from its default."""
    for name in names:
        if (value := getattr(config, name)) != type(config).model_fields[name].default:
            raise ValueError(f"{group}{name}={value!r} has no effect {reason}; remove it")


BOOLEAN = "tag:yaml.org,2002:bool"


class Loader(yaml.SafeLoader):
    """YAML loader with the booleans of YAML 1.2, `true` and `false`: `no`, `off` and `on` are strings."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != BOOLEAN]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


Loader.add_implicit_resolver(BOOLEAN, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def load_yaml(schema: TypeAdapter[Any], path: Path, overrides: Iterable[str] = ()) -> Any:
    """Read a YAML file, apply `key.sub=value` overrides, and check it against `schema`.

    Raises InputError naming the file, the key, the value and the rule; for a mistyped key, also the closest known key.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader)  # a SafeLoader
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML ({' '.join(str(error).split())}); correct that line") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path} contains {type(raw).__name__} instead of keys and values; see configs/ for examples")
    for override in overrides:
        _apply(raw, override)
    return validate(schema, raw, str(path))


def validate(schema: TypeAdapter[Any], raw: dict[str, Any], where: str) -> Any:
    """Check values against `schema`. Raises InputError naming `where`, the key, the value and the rule."""
    try:
        return schema.validate_python(raw)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error, schema)}") from error


def _apply(raw: dict[str, Any], override: str) -> None:
    keys, found, value = override.partition("=")
    if not found:
        raise InputError(f"--set {override!r} has no '='; write key.sub=value")
    *parents, last = keys.split(".")
    for key in parents:
        raw = raw.setdefault(key, {})
        if not isinstance(raw, dict):
            raise InputError(f"--set {override!r}: {key!r} is a value, not a group; see the file for its groups")
    try:
        raw[last] = yaml.load(value, Loader)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override!r}: the value is not YAML ({' '.join(str(error).split())})") from error


def _explain(error: ValidationError, schema: TypeAdapter[Any]) -> str:
    first = error.errors()[0]
    if first["type"].startswith("union_tag"):
        tasks = ", ".join(schema.json_schema()["discriminator"]["mapping"])
        return f"task={first['input'].get('task')!r} must be one of {tasks}; set the task of this file"
    path = [str(part) for part in first["loc"][1:]]  # the first is the task
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}; {did_you_mean(path[-1], _all_keys(schema.json_schema()))}"
    if first["type"] == "value_error":  # from our validators, whose message is complete
        message = first["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    return f"{key}={first['input']!r}: {first['msg']}" if first["type"] != "missing" else f"{key!r} is missing; add it"


def _all_keys(schema: Any) -> set[str]:
    """All property names in a JSON schema, at any depth."""
    if isinstance(schema, Mapping):
        keys = set(schema.get("properties", {}))
        return keys.union(*(_all_keys(value) for value in schema.values()))
    if isinstance(schema, list):
        return set().union(*(_all_keys(value) for value in schema))
    return set()
