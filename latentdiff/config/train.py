"""What a training YAML may say: one model for each task, every default in one place."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter

from latentdiff.config.base import Config
from latentdiff.config.model import ScheduleConfig, UNetConfig, VAEConfig

Probability = Annotated[float, Field(ge=0, le=1)]


class DataConfig(Config):
    """Captioned pictures (a folder, zip or tar), and the held-out ones that are only ever looked at.

    Without `held_out` every 20th picture of `train` is held out, none if there are fewer than 20. `keep` takes part
    of both: for each column named, the values to train on; `skip` leaves out pictures by name. `prefix` goes before
    every caption, and is the caption of pictures that have none.
    """

    train: Path
    held_out: Path | None = None
    resolution: PositiveInt = 128
    batch_size: PositiveInt = 64
    num_workers: NonNegativeInt = 0
    flip: Probability = 0.0
    keep: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    skip: tuple[str, ...] = ()
    prefix: str = ""


class OptimConfig(Config):
    """AdamW (Loshchilov & Hutter 2019) or Muon with warm-up, then a cosine to `final_learning_rate`."""

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: PositiveFloat = 1e-4
    final_learning_rate: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 500
    max_steps: PositiveInt = 100_000
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: PositiveFloat = 1.0
    ema_decay: Probability = 0.999


class RunConfig(Config):
    """Where a run keeps its state, and how often it says something."""

    output: Path
    seed: NonNegativeInt = 0
    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"
    gradient_accumulation_steps: PositiveInt = 1
    checkpoint_every: PositiveInt = 500
    sample_every: PositiveInt = 500
    log_every: PositiveInt = 50


class TrainConfig(Config):
    """What all tasks share."""

    data: DataConfig
    optim: OptimConfig = OptimConfig()
    run: RunConfig


class VAETrainConfig(TrainConfig):
    """Pixels to latents and back: L1 + gradient difference + KL, and a patch discriminator when weighted."""

    task: Literal["vae"]
    model: VAEConfig
    gradient_weight: NonNegativeFloat = 1.0
    kl_weight: NonNegativeFloat = 1e-4
    adversarial_weight: NonNegativeFloat = 0.0
    adversarial_start: NonNegativeInt = 0


class TextTrainConfig(TrainConfig):
    """A CLIP pair trained contrastively on the captions; the text half is what generation uses."""

    task: Literal["text_encoder"]
    vocab_size: PositiveInt = 8000
    max_length: PositiveInt = 32
    hidden_size: PositiveInt = 256
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    projection_dim: PositiveInt = 256
    image_layers: PositiveInt = 4
    patch_size: PositiveInt = 16


class DenoiserConfig(TrainConfig):
    """A U-Net in the latent space of a frozen VAE, conditioned by a frozen text encoder.

    Timesteps are drawn with a density that grows like t ** (timestep_power - 1): evenly at 1, towards noise above.
    """

    caption_dropout: Probability = 0.1
    timestep_power: PositiveFloat = 1.0
    min_snr_gamma: PositiveFloat | None = None
    sample_prompts: tuple[str, ...] = ()
    sample_steps: PositiveInt = 20
    guidance_scale: NonNegativeFloat = 4.0


class UNetTrainConfig(DenoiserConfig):
    """A U-Net from scratch, or from the weights in `init`."""

    task: Literal["unet"]
    vae: Path
    text_encoder: Path
    model: UNetConfig
    schedule: ScheduleConfig
    init: Path | None = None


class FineTuneConfig(DenoiserConfig):
    """A model that exists, taught more: `lora` and `dora` train low-rank pairs beside its layers, `full` its U-Net.

    `base`: a model folder or hub id; the bundled model if not given.
    """

    task: Literal["finetune"]
    base: str | None = None
    method: Literal["lora", "dora", "full"] = "lora"
    rank: PositiveInt = 16


AnyTrainConfig = Annotated[
    VAETrainConfig | TextTrainConfig | UNetTrainConfig | FineTuneConfig, Field(discriminator="task")
]
train_config: TypeAdapter[Any] = TypeAdapter(AnyTrainConfig)
