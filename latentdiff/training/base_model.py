"""Open the base model of a fine-tune."""

from latentdiff.checkpoints.components import open_model
from latentdiff.checkpoints.source import ModelSource, OpenOptions
from latentdiff.config.train import FineTuneConfig
from latentdiff.errors import InputError


def open_base_model(config: FineTuneConfig) -> ModelSource:
    """The model that `base` names. Raises InputError for one whose U-Net takes more than noisy latents."""
    source = open_model(config.base, OpenOptions(**config.base_options.model_dump()))
    channels = source.unet.config.in_channels
    if channels != source.unet.config.out_channels:
        raise InputError(f"base={source.path} reads {channels} channels (inpainting or editing); "
                         "fine-tuning is for text-to-image models")  # fmt: skip
    return source
