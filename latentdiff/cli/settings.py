"""The settings of an image, with the names of `Recipe`: their defaults, and the arguments of the pipeline's call."""

from typing import Any

DEFAULTS: dict[str, Any] = {"guidance_interval": (0.0, 1.0), "eta": 0.0, "prompt_syntax": "a1111"}
SIDES = ("height", "width")
ARGUMENTS = {"steps": "num_inference_steps"}  # names of the pipeline's arguments that differ from those of settings


def with_model_defaults(settings: dict[str, Any], pipe: Any) -> dict[str, Any]:
    """The settings, with the model's steps, guidance and sampler where none are given."""
    own = pipe.generation.model_dump()
    return {"steps": own.pop("num_inference_steps")} | own | settings


def sampled_size(settings: dict[str, Any], pipe: Any) -> dict[str, int]:
    """The height and width in the settings, or else the model's."""
    return {side: settings.get(side) or pipe.default_size for side in SIDES}


def call_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as arguments of the pipeline's call."""
    return {ARGUMENTS.get(name, name): value for name, value in settings.items()}
