"""Read files of prompts: one per line, followed by options as in A1111's script, or one JSON object per line."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from latentdiff.config.base import Config
from latentdiff.errors import InputError, LatentDiffError, did_you_mean, shorten
from latentdiff.sampling.samplers import SAMPLERS
from latentdiff.sampling.spacings import SPACINGS
from latentdiff.serving.a1111_names import find_sampler, find_scheduler

MAX_FILE = 64 * 2**20  # bytes
SEED_NAMES = ("seed", "variation_seed")
JSON_SUFFIXES = (".jsonl", ".ndjson")
COMMENT = "#"  # at the beginning of a line
OPTION = re.compile(r"(?:^|\s)--([A-Za-z]\w*(?:-\w+)*)(?=[\s=]|$)")
QUOTED = re.compile(r"""[\s=]*(["'])((?:\\.|(?!\1)[^\\])*\\?)\1(?=\s*$|\s+--)""")
A1111_NAMES = {
    "cfg_scale": "guidance_scale", "sampler_name": "sampler", "scheduler": "spacing", "batch_size": "num_images",
    "n_iter": "num_images", "subseed": "variation_seed", "subseed_strength": "variation_strength",
}  # fmt: skip


class LineOptions(Config):
    """The options that a line may set, with the names of `Recipe`; all others are the same for the complete file."""

    prompt: str
    negative_prompt: str | None = None
    prompt_2: str | None = None
    negative_prompt_2: str | None = None
    num_images: Annotated[int, Field(ge=1, le=10_000)] | None = None
    seed: Annotated[int, Field(ge=-1, lt=2**63)] | None = None
    variation_seed: Annotated[int, Field(ge=-1, lt=2**63)] | None = None
    variation_strength: float | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    spacing: str | None = None
    eta: float | None = None
    height: int | None = None
    width: int | None = None
    clip_skip: int | None = None


@dataclass(frozen=True)
class PromptLine:
    """One line of a file. number: from 1. settings: its options, except the prompt and the number of images."""

    number: int
    prompt: str
    num_images: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def read_prompts_file(path: Path) -> list[PromptLine]:
    """Read the lines that are not empty and do not begin with `#`. Raises InputError naming the line."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_FILE else b""
    except OSError as error:
        raise InputError(f"--prompts {path} cannot be read ({error.strerror}); check the path") from error
    if size > MAX_FILE:
        raise InputError(f"--prompts {path} is {size} bytes long, more than {MAX_FILE}; split it")
    parse = _from_json if path.suffix.lower() in JSON_SUFFIXES else _from_text
    lines = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = raw.decode().strip()
            if text and not text.startswith(COMMENT):
                lines.append(_line(number, parse(text)))
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {number}: not UTF-8 text; save the file as UTF-8") from error
        except LatentDiffError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    if not lines:
        raise InputError(f"--prompts {path} has no prompts; write one per line")
    return lines


def _from_text(text: str) -> dict[str, Any]:
    """Parse `a red apple --steps 20 --negative_prompt "blue, green"`; the prompt may be an option, as in A1111."""
    match = OPTION.search(text)
    prompt = text[: match.start()].strip() if match else text
    found: dict[str, Any] = {"prompt": prompt} if prompt else {}
    while match:
        name, following = match[1].replace("-", "_"), OPTION.search(text, match.end())
        if quoted := QUOTED.match(text, match.end()):
            value, following = quoted[2].replace(f"\\{quoted[1]}", quoted[1]), OPTION.search(text, quoted.end())
        else:
            value = text[match.end() : following.start() if following else None].strip().removeprefix("=").strip()
            if not value:
                raise InputError(f"--{match[1]} has no value; write it after the option, in quotes if it has spaces")
        _set(found, name, value)
        match = following
    return found


def _from_json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f'not JSON ({str(error)[:80]}); write {{"prompt": "a red apple"}}') from error
    if not isinstance(value, dict):
        raise InputError(f'{shorten(value)} is not an object; write {{"prompt": "a red apple"}}')
    found: dict[str, Any] = {}
    for name, item in value.items():
        _set(found, name, item)
    return found


def _set(found: dict[str, Any], name: str, value: Any) -> None:
    key = A1111_NAMES.get(name, name)
    if key in found:
        raise InputError(f"{key} is given twice; remove one of them")
    found[key] = value


def _line(number: int, found: dict[str, Any]) -> PromptLine:
    try:
        checked = LineOptions.model_validate(found)
    except ValidationError as error:
        raise InputError(_explain(error.errors()[0])) from error
    settings = checked.model_dump(exclude_none=True)
    for name in SEED_NAMES:
        if settings.get(name) == -1:  # random in A1111
            del settings[name]
    settings |= _spacing(settings.pop("spacing", None))
    settings = _sampler(settings.pop("sampler", None)) | settings
    return PromptLine(number, settings.pop("prompt"), settings.pop("num_images", None), settings)


def _sampler(name: str | None) -> dict[str, str]:
    """A sampler by its name, or by A1111's label, which may end in the label of a spacing."""
    if name is None or name in SAMPLERS:
        return {} if name is None else {"sampler": name}
    sampler, spacing = find_sampler(name)
    return {"sampler": sampler} | ({} if spacing is None else {"spacing": spacing})


def _spacing(name: str | None) -> dict[str, str]:
    """A spacing by its name, or by A1111's label; "Automatic" is the model's default."""
    spacing = name if name is None or name in SPACINGS else find_scheduler(name)
    return {} if spacing is None else {"spacing": spacing}


def _explain(first: Any) -> str:
    name = str(first["loc"][0])
    if first["type"] == "missing":
        return "no prompt; write it before the options"
    if first["type"] == "extra_forbidden":
        return f"{shorten(name)} is not an option of a line; {did_you_mean(name, LineOptions.model_fields)}"
    return f"{name}={shorten(first['input'])}: {first['msg']}; correct it"
