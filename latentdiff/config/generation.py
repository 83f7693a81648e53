"""The default sampling settings of a model, `generation_config.json`."""

from typing import Any, Self

from pydantic import PositiveInt

from latentdiff.config.diffusers_json import ModelConfig


class GenerationConfig(ModelConfig):
    """A model's default sampling settings; the name of the file is the one that transformers uses."""

    num_inference_steps: PositiveInt = 25
    guidance_scale: float = 5.0
    sampler: str = "ddim"

    def with_given(self, **given: Any) -> Self:
        """A copy in which the given settings that are not None replace the defaults."""
        return self.model_copy(update={key: value for key, value in given.items() if value is not None})
