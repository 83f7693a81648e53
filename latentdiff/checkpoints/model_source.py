"""`ModelSource`: a model on disk in any layout, as validated configs and the locations of tensors."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from latentdiff.checkpoints.tensor_locations import TensorLocation
from latentdiff.config.clip import CLIPTextConfig
from latentdiff.config.generation import GenerationConfig
from latentdiff.config.model import IdentityVAEConfig, UNetConfig, VAEConfig
from latentdiff.config.schedule import ScheduleConfig
from latentdiff.errors import CheckpointError, InputError, did_you_mean
from latentdiff.text.tokenizer import CLIPTokenizer

PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class OpenOptions:
    """Options for opening a model.

    allow_pickle: read tensors from pickles. prediction_type: overrides that of the files. variant: of the files in a
    folder, such as `fp16`. vae, unet: files or folders whose VAE or U-Net replaces that of the model.
    """

    allow_pickle: bool = False
    prediction_type: str | None = None
    variant: str | None = None
    vae: str | Path | None = None
    unet: str | Path | None = None

    def __post_init__(self) -> None:
        if self.prediction_type is not None and self.prediction_type not in PREDICTIONS:
            near = did_you_mean(self.prediction_type, PREDICTIONS)
            raise InputError(f"prediction_type={self.prediction_type!r} is unknown; {near}")


@dataclass(frozen=True)
class NetworkFiles:
    """One network: its config, its name for messages, and a function that locates its tensors without reading them."""

    config: Any
    where: str
    find: Callable[[], dict[str, TensorLocation]]


@dataclass(frozen=True)
class ModelSource:
    """A model whose weights can be read. notes: how settings were determined, and what in the files is not read."""

    path: Path
    unet: NetworkFiles
    vae: NetworkFiles
    text_encoders: tuple[NetworkFiles, ...]
    read_tokenizers: Callable[[], list[CLIPTokenizer]]
    schedule: ScheduleConfig
    zero_empty_prompt: bool = False
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    notes: tuple[str, ...] = ()

    def networks(self) -> dict[str, NetworkFiles]:
        """The networks by the names of their folders in diffusers' layout."""
        names = text_encoder_names(self.unet.config, len(self.text_encoders))
        return {"unet": self.unet, "vae": self.vae, **dict(zip(names, self.text_encoders, strict=True))}

    def with_prediction(self, prediction_type: str | None) -> "ModelSource":
        """A copy with another prediction type, if one is given."""
        if prediction_type is None or prediction_type == self.schedule.prediction_type:
            return self
        return replace(
            self,
            schedule=self.schedule.model_copy(update={"prediction_type": prediction_type}),
            notes=(f"prediction type {prediction_type}: as given",),
        )


def text_encoder_names(unet: UNetConfig, count: int) -> list[str]:
    """diffusers' names of the text encoders; the only encoder of an SDXL refiner is `text_encoder_2`."""
    if count == 1 and unet.addition_embed_type is not None:
        return ["text_encoder_2"]
    return ["text_encoder", "text_encoder_2"][:count]


def check_counts(files: NetworkFiles, tensors: dict[str, TensorLocation]) -> None:
    """Compare the numbers of layers in a config with those in the weights, before the network is built.

    Raises CheckpointError naming the difference.
    """
    config = files.config
    expected: dict[str, tuple[str, int]] = {}
    if isinstance(config, UNetConfig):
        expected["residual blocks"] = (".conv1.weight", config.residual_blocks)
        expected["transformer blocks"] = (".norm1.weight", config.transformer_blocks)
        tensors = {key: value for key, value in tensors.items() if ".resnets." not in key or ".conv1." in key}
    elif isinstance(config, VAEConfig):
        blocks = len(config.block_out_channels) * (2 * config.layers_per_block + 1) + 4
        expected["residual blocks"] = (".conv1.weight", blocks)
    elif isinstance(config, CLIPTextConfig):
        expected["layers"] = (".layer_norm1.weight", config.num_hidden_layers)
    elif not isinstance(config, IdentityVAEConfig):
        raise TypeError(f"unknown config {type(config).__name__}")
    for what, (ending, count) in expected.items():
        found = sum(key.endswith(ending) for key in tensors)
        if found != count:
            raise CheckpointError(
                f"{files.where}: the config describes {count} {what} and the weights have {found}; "
                "both must belong to the same model"
            )
