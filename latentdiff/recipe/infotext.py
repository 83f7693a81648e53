"""A1111's `parameters` text: the prompt, the negative prompt, and one line of `Key: value` pairs."""

import json
import re
from pathlib import Path
from typing import Any

from latentdiff.recipe.names import A1111_AUTOMATIC, A1111_SAMPLERS, A1111_SCHEDULES, A1111_UPSCALERS
from latentdiff.recipe.schema import Recipe

PAIR = re.compile(r'(\w[\w \-/]{0,60}):\s*("(?:\\.|[^\\"])*"|\{[^{}]*\}|[^,]*)(?:,|$)')
LEAST_PAIRS = 3  # with fewer pairs, the last line is part of the prompt
NEGATIVE = "Negative prompt:"


def write_infotext(recipe: Recipe, width: int, height: int) -> str:
    """Write the text that A1111, Civitai and sd-parsers read. width, height: of the image, before a second pass if any.

    The version is not a plain number, for which A1111 would enable the behaviour of its own old versions.
    """
    labels = {ours: label for label, ours in A1111_SAMPLERS.items()}
    schedules = {ours: label for label, ours in A1111_SCHEDULES.items()}
    pairs: dict[str, Any] = {
        "Steps": recipe.steps,
        "Sampler": labels.get(recipe.sampler, recipe.sampler),
        "Schedule type": schedules.get(recipe.spacing or ""),
        "CFG scale": f"{recipe.guidance_scale:g}",
        "Seed": recipe.seed,
        "Size": f"{width}x{height}",
        "Model hash": recipe.hashes.get("model"),
        "Model": Path(recipe.model).stem if recipe.model else "emoji",
        "Variation seed": recipe.variation_seed,
        "Variation seed strength": recipe.variation_strength,
        "Denoising strength": recipe.hires_strength if recipe.hires else recipe.strength,
        "Hires upscale": f"{recipe.hires:g}" if recipe.hires else None,
        "Hires steps": recipe.hires_steps,
        "Hires upscaler": _upscaler_label(recipe.upscaler or "lanczos") if recipe.hires else None,
        "Refiner": None if recipe.refiner is None else Path(recipe.refiner).stem,
        "Refiner switch at": recipe.refiner_switch,
        "Tiling": True if recipe.seamless else None,
        "Mask blur": recipe.mask_blur if recipe.mask_hash else None,
        "Eta": recipe.eta or None,
        "Clip skip": recipe.clip_skip + 1 if recipe.clip_skip else None,  # A1111 counts the last layer as 1
        "Hashes": json.dumps(recipe.hashes) if recipe.hashes else None,
        "Version": f"latentdiff {recipe.version}",
    }
    line = ", ".join(f"{key}: {_quoted(key, value)}" for key, value in pairs.items() if value is not None)
    negative = f"\n{NEGATIVE} {recipe.negative_prompt}" if recipe.negative_prompt else ""
    return f"{recipe.prompt}{negative}\n{line}"


def _upscaler_label(upscaler: str) -> str:
    return {"lanczos": "Lanczos", "latent": "Latent (bicubic)"}.get(upscaler, Path(upscaler).stem)


def _quoted(key: str, value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if key != "Hashes" and re.search(r"[,:\n]", text) else text


def parse_infotext(text: str) -> tuple[dict[str, Any], list[str]] | None:
    """Parse to settings with the names of `Recipe`, and unsupported pairs; None for another kind of text."""
    *lines, last = text.strip().split("\n")
    pairs = {key.strip(): _unquoted(value.strip()) for key, value in PAIR.findall(last)}
    if len(pairs) < LEAST_PAIRS:
        return None
    prompt, _, negative = "\n".join(lines).partition(NEGATIVE)
    settings: dict[str, Any] = {"prompt": prompt.strip()}
    if negative.strip():
        settings["negative_prompt"] = negative.strip()
    for key, name, convert in (
        ("Steps", "steps", int),
        ("CFG scale", "guidance_scale", float),
        ("Seed", "seed", int),
        ("Variation seed", "variation_seed", int),
        ("Variation seed strength", "variation_strength", float),
        ("Denoising strength", "strength", float),
        ("Mask blur", "mask_blur", float),
        ("Eta", "eta", float),
        ("Clip skip", "clip_skip", lambda value: max(0, int(value) - 1)),
    ):
        _take(pairs, key, settings, name, convert)
    _take_second_pass(pairs, settings)
    if "variation_strength" not in settings and (other := settings.pop("variation_seed", None)) is not None:
        pairs["Variation seed"] = other  # has no effect without a strength
    if pairs.get("Tiling") == "True":
        settings["seamless"] = "x,y"
        del pairs["Tiling"]
    _take_size(pairs, settings)
    _take_sampler(pairs, settings)
    for key in ("Version", "Hashes", "Lora hashes", "TI hashes", "RNG"):
        pairs.pop(key, None)
    return settings, [f"{key}: {value}" for key, value in pairs.items()]


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value
    except ValueError:
        return value


def _take(pairs: dict[str, Any], key: str, settings: dict[str, Any], name: str, convert: Any) -> None:
    """Move a value from `pairs` to `settings`, if it can be converted."""
    try:
        settings[name] = convert(pairs[key])
    except (KeyError, ValueError):
        return
    del pairs[key]


def _take_second_pass(pairs: dict[str, Any], settings: dict[str, Any]) -> None:
    """Read the options of a second pass, to which the strength then belongs. One of another shape is not supported."""
    if "Hires upscale" not in pairs and "Hires resize" not in pairs:
        return
    strength = settings.pop("strength", None)
    _take(pairs, "Hires upscale", settings, "hires", _scale)
    if "hires" not in settings:
        pairs |= {} if strength is None else {"Denoising strength": strength}
        return
    if strength is not None:
        settings["hires_strength"] = strength
    _take(pairs, "Hires steps", settings, "hires_steps", int)
    if settings.get("hires_steps") == 0:  # as many as the first pass
        del settings["hires_steps"]
    _take(pairs, "Hires upscaler", settings, "upscaler", A1111_UPSCALERS.__getitem__)


def _scale(text: str) -> float:
    if not 1 < (value := float(text)) <= 8:
        raise ValueError(text)
    return value


def _take_size(pairs: dict[str, Any], settings: dict[str, Any]) -> None:
    if match := re.fullmatch(r"(\d{1,5})x(\d{1,5})", pairs.get("Size", "")):
        settings["width"], settings["height"] = map(int, match.groups())
        del pairs["Size"]


def _take_sampler(pairs: dict[str, Any], settings: dict[str, Any]) -> None:
    """Read sampler and schedule; before version 1.9, the label of the schedule followed that of the sampler."""
    label, schedule = pairs.get("Sampler", ""), pairs.get("Schedule type", "Automatic")
    if label not in A1111_SAMPLERS and (match := re.fullmatch(r"(.*) (Karras|Exponential)", label)):
        label, schedule = match.groups()
    if label not in A1111_SAMPLERS:
        return
    pairs.pop("Sampler")
    sampler = settings["sampler"] = A1111_SAMPLERS[label]
    if schedule == "Automatic":
        settings["spacing"] = A1111_AUTOMATIC.get(sampler, "linspace")
    elif schedule in A1111_SCHEDULES:
        settings["spacing"] = A1111_SCHEDULES[schedule]
    else:
        return
    pairs.pop("Schedule type", None)
