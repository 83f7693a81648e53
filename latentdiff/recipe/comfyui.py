"""Read ComfyUI's `prompt` text: a graph of nodes, followed backwards from its sampler."""

import json
from typing import Any

from latentdiff.recipe.names import COMFYUI_SCHEDULES
from latentdiff.sampling.samplers import SAMPLERS

MOST_LINKS = 64  # the length of a path through the graph
KNOWN_NODES = {"CheckpointLoaderSimple", "CLIPTextEncode", "EmptyLatentImage", "KSampler", "VAEDecode", "SaveImage"}


def parse_comfyui(text: str) -> tuple[dict[str, Any], list[str]] | None:
    """Parse to settings with the names of `Recipe`, and unsupported settings; None for another kind of text."""
    try:
        graph = json.loads(text)
    except (ValueError, RecursionError):
        return None
    nodes = {key: node for key, node in graph.items() if _is_node(node)} if isinstance(graph, dict) else {}
    samplers = [node for node in nodes.values() if node["class_type"] in ("KSampler", "KSamplerAdvanced")]
    if not samplers:
        return None
    inputs = samplers[0]["inputs"]
    settings, dropped = _sampler_settings(inputs)
    for name, key in (("prompt", "positive"), ("negative_prompt", "negative")):
        found = _upstream(nodes, inputs.get(key), "text")
        if isinstance(found, str):
            settings[name] = found
    for side in ("width", "height"):
        if (value := _number(_upstream(nodes, inputs.get("latent_image"), side))) is not None:
            settings[side] = int(value)
    if isinstance(model := _upstream(nodes, inputs.get("model"), "ckpt_name"), str):
        dropped.append(f"Model: {model}")
    others = {node["class_type"] for node in nodes.values()} - KNOWN_NODES
    dropped += [f"another {node['class_type']}" for node in samplers[1:]]
    return settings, [*dropped, *(f"node {name}" for name in sorted(others))]


def _sampler_settings(inputs: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    settings: dict[str, Any] = {}
    dropped = []
    sources = {"steps": "steps", "guidance_scale": "cfg", "seed": "seed" if "seed" in inputs else "noise_seed"}
    for name, key in sources.items():
        if (value := _number(inputs.get(key))) is not None:
            settings[name] = value if name == "guidance_scale" else int(value)
    if (denoise := _number(inputs.get("denoise"))) is not None and denoise < 1:
        settings["strength"] = denoise
    for name, key, known in (
        ("sampler", "sampler_name", {name: name for name in SAMPLERS}),
        ("spacing", "scheduler", COMFYUI_SCHEDULES),
    ):
        if (value := inputs.get(key)) in known:
            settings[name] = known[value]
        elif value is not None:
            dropped.append(f"{key}: {value}")
    start, end = _number(inputs.get("start_at_step")), _number(inputs.get("end_at_step"))
    if start or (end is not None and end < settings.get("steps", end)):
        dropped.append(f"steps {start or 0:g} to {end or 0:g}")
    if settings.get("sampler") == "lcm":
        settings.pop("spacing", None)
    return settings, dropped


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def _number(value: Any) -> float | None:
    """The value if it is a finite number within 64 bits, else None; integers are not converted to float."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63 else None


def _upstream(nodes: dict[str, Any], link: Any, name: str) -> Any:
    """Follow a link [node, slot] upstream to the first value with this name, or None."""
    for _ in range(MOST_LINKS):
        if not (isinstance(link, list) and link and isinstance(link[0], str) and link[0] in nodes):
            return None
        inputs = nodes[link[0]]["inputs"]
        value = inputs.get(name)
        if value is not None and not isinstance(value, list):
            return value
        candidates = [value, *(inputs.get(key) for key in ("conditioning", "samples", "model", "pixels"))]
        link = next((candidate for candidate in candidates if isinstance(candidate, list)), None)
    return None
