"""Schema of training configs: one class per task, with all defaults."""

from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, Self

from PIL import ImageColor
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    model_validator,
)

from latentdiff.config.base import Config, validate
from latentdiff.config.model import UNetConfig, VAEConfig
from latentdiff.config.schedule import ScheduleConfig
from latentdiff.errors import InputError

Probability = Annotated[float, Field(ge=0, le=1)]
CLASS_NAME = "{name}"


def check_template(template: str) -> str:
    """Return `template`. Raises InputError unless `{name}` is its only placeholder."""
    try:
        fields = {field[1:] for field in Formatter().parse(template) if field[1] is not None}
    except ValueError as error:
        raise InputError(f"caption_template={template!r}: {error}; write {{{{ or }}}} for a literal brace") from error
    if fields != {("name", "", None)}:
        raise InputError(
            f"caption_template={template!r} must contain {{name}} and no other placeholder; try 'a photo of a {{name}}'"
        )
    return template


def check_colour(colour: str) -> str:
    """Return `colour`. Raises InputError unless it is a name or a code that Pillow supports."""
    try:
        ImageColor.getrgb(colour)
    except ValueError as error:
        raise InputError(f"background={colour!r} is not a colour; try 'black' or '#808080'") from error
    return colour


class DataConfig(Config):
    """Captioned pictures for training and evaluation; docs/data.md describes all settings.

    train, held_out: a folder, zip or tar, shards by a pattern (`{000..012}.tar`) or https://, a parquet file, or a
        Hugging Face dataset (`hf://owner/name`, or one saved to disk). Without `held_out`, every 20th picture of
        `train` is held out if it has at least 20.
    resolution: side of the square in pixels. allow_upscale: the largest factor a picture may be enlarged by.
        max_crop: the largest share of its area that may be cropped.
    keep: for each named column, the values to train on. skip: names of pictures to exclude.
    caption_template: turns the `{name}` of a class into a caption. prefix: precedes every caption, and is the caption
        of pictures without one. tag_dropout: the probability of dropping each comma-separated part of a caption.
    background: the colour behind transparent pictures.
    """

    train: str | Path
    held_out: str | Path | None = None
    resolution: PositiveInt = 128
    batch_size: PositiveInt = 64
    num_workers: NonNegativeInt = 0
    flip: Probability = 0.0
    buckets: bool = True
    max_crop: Probability = 0.1
    allow_upscale: Annotated[float, Field(ge=1)] = 1.05
    crop: Literal["center", "random"] = "center"
    shuffle_captions: bool = False
    tag_dropout: Probability = 0.0
    keep: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    skip: tuple[str, ...] = ()
    caption_template: Annotated[str, AfterValidator(check_template)] = CLASS_NAME
    prefix: str = ""
    background: Annotated[str, AfterValidator(check_colour)] = "white"


def data_config(**values: Any) -> DataConfig:
    """Validate data settings given as command-line options. Raises InputError."""
    config: DataConfig = validate(TypeAdapter(dict[str, DataConfig]), {"data": values}, "pictures")["data"]
    return config


class OptimConfig(Config):
    """The optimiser, by default AdamW (Loshchilov & Hutter 2019), and its learning rate.

    The learning rate rises linearly for `warmup_steps`, then follows `lr_schedule` to `final_learning_rate`.
    """

    name: Literal["adamw", "adamw_8bit", "prodigy", "muon"] = "adamw"
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    learning_rate: PositiveFloat = 1e-4
    final_learning_rate: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 500
    max_steps: PositiveInt = 100_000
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: PositiveFloat = 1.0
    ema_decay: Probability = 0.999


class RunConfig(Config):
    """Output folder, precision, and intervals of logging, evaluation and checkpoints, in optimiser steps.

    early_stopping: number of evaluations without a lower held-out loss after which the run ends.
    gradient_checkpointing: recompute activations in the backward pass, to use less memory.
    mixed_precision: "auto" is bf16, or "no" on CPUs without bfloat16 instructions; a resumed run keeps its precision.
    """

    output: Path
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    gradient_accumulation_steps: PositiveInt = 1
    gradient_checkpointing: bool = False
    early_stopping: PositiveInt | None = None
    checkpoint_every: PositiveInt = 500
    sample_every: PositiveInt = 500
    log_every: PositiveInt = 50
    tracker: Literal["auto", "none", "tensorboard", "wandb", "mlflow"] = "auto"


class TrainConfig(Config):
    """Settings that all tasks share."""

    task: str
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    run: RunConfig

    @model_validator(mode="after")
    def _only_denoisers_have_gradient_checkpointing(self) -> Self:
        if self.run.gradient_checkpointing and not isinstance(self, DenoiserConfig):
            raise ValueError("run.gradient_checkpointing is for U-Nets only; remove it")
        return self


class VAETrainConfig(TrainConfig):
    """VAE training. Losses: L1, image gradients, KL divergence, and a patch discriminator if its weight is not 0.

    init: a VAE folder to start from. train_encoder: if false, only the decoder is trained, so that latents, and
    denoisers trained on them, remain valid. latent_noise: add Gaussian noise to the latents before decoding; its
    standard deviation is drawn uniformly per picture, up to this multiple of that of the latents. gradient_exponent:
    values below 1, such as 0.5, penalise small ripples in uniform areas more.
    """

    task: Literal["vae"]
    model: VAEConfig
    gradient_weight: NonNegativeFloat = 1.0
    gradient_exponent: Annotated[float, Field(gt=0, le=1)] = 1.0
    kl_weight: NonNegativeFloat = 1e-4
    adversarial_weight: NonNegativeFloat = 0.0
    adversarial_start: NonNegativeInt = 0
    init: Path | None = None
    train_encoder: bool = True
    latent_noise: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _a_frozen_encoder_needs_init(self) -> Self:
        if not self.train_encoder and self.init is None:
            raise ValueError("train_encoder: false needs init, the folder of a VAE")
        return self


class TextTrainConfig(TrainConfig):
    """Contrastive training of a CLIP text and image encoder; generation uses the text encoder."""

    task: Literal["text_encoder"]
    vocab_size: PositiveInt = 8000
    max_length: PositiveInt = 32
    hidden_size: PositiveInt = 256
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    projection_dim: PositiveInt = 256
    image_layers: PositiveInt = 4
    patch_size: PositiveInt = 16

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size={self.hidden_size} must be a multiple of heads={self.heads}")
        return self


class MetricsConfig(Config):
    """Metrics at each evaluation: images generated for `num` held-out captions are compared with their pictures.

    Image k has seed k. features, weights, judge and names: as in `latentdiff evaluate`.
    """

    num: PositiveInt = 64
    names: Annotated[tuple[str, ...], Field(min_length=1)] = ("frechet", "kernel")
    features: str = "efficientnet-lite0"
    weights: str | None = None
    judge: str | None = None


class DenoiserConfig(TrainConfig):
    """Settings shared by training a denoiser from scratch and by fine-tuning one.

    timestep_power: timesteps have a density proportional to t ** (timestep_power - 1); 1 is uniform, larger values
    prefer noisy timesteps. noise_offset: standard deviation of a constant added to each channel's noise (Guttenberg
    2023). huber_delta: threshold of the Huber loss; the loss is the squared error if None.
    """

    caption_dropout: Probability = 0.1
    timestep_power: PositiveFloat = 1.0
    min_snr_gamma: PositiveFloat | None = None
    noise_offset: NonNegativeFloat = 0.0
    huber_delta: PositiveFloat | None = None
    sample_prompts: tuple[str, ...] = ()
    sample_steps: PositiveInt = 20
    guidance_scale: NonNegativeFloat = 4.0
    metrics: MetricsConfig | None = None


class UNetTrainConfig(DenoiserConfig):
    """Train a U-Net from scratch or from the weights in `init`, and optionally the text encoder with it.

    vae: the folder of a VAE, or null for pixel space: RGB with three channels, greyscale with one.
    """

    task: Literal["unet"]
    vae: Path | None
    text_encoder: Path
    model: UNetConfig
    schedule: ScheduleConfig
    init: Path | None = None
    train_text_encoder: bool = False

    @model_validator(mode="after")
    def _pixels_have_one_channel_or_three(self) -> Self:
        needs, gives = self.model.in_channels, self.model.out_channels
        if self.vae is None and (needs not in (1, 3) or gives != needs):
            raise ValueError(
                f"vae: null is pixel space, and model.in_channels={needs}, model.out_channels={gives}; make both 1 or 3"
            )
        return self


class PriorConfig(Config):
    """Prior preservation (Ruiz et al. 2023, sec. 3.2): class images keep the model from forgetting the class.

    images: the number of class images, which the base model generates from `prompt` into `folder` unless they exist.
    weight: factor of their loss. Class images and training pictures are used equally often.
    """

    prompt: str
    images: PositiveInt = 100
    weight: PositiveFloat = 1.0
    folder: Path | None = None


class BaseOptions(Config):
    """How the base model of a fine-tune is opened; see `checkpoints.model_source.OpenOptions`."""

    vae: str | None = None
    unet: str | None = None
    variant: str | None = None
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    allow_pickle: bool = False


class FineTuneConfig(DenoiserConfig):
    """Fine-tuning of an existing model.

    base: a model folder, file or hub id; the bundled model if None. method: `lora` and `dora` train low-rank pairs
    for the U-Net's layers, and with `text_encoder` for those of the text encoder; `full` trains the U-Net;
    `textual_inversion` trains `vectors` embeddings of the new word `data.prefix`, initialised with `init_word`.
    """

    task: Literal["finetune"]
    base: str | None = None
    base_options: BaseOptions = BaseOptions()
    method: Literal["lora", "dora", "full", "textual_inversion"] = "lora"
    rank: PositiveInt = 16
    text_encoder: bool = False
    prior: PriorConfig | None = None
    init_word: str = "picture"
    vectors: PositiveInt = 1

    @model_validator(mode="after")
    def _settings_apply_to_the_method(self) -> Self:
        if self.text_encoder and self.method not in ("lora", "dora"):
            raise ValueError(f"text_encoder: true applies to lora and dora, not to {self.method}; remove it")
        if self.prior and self.method == "textual_inversion":
            raise ValueError("prior does not apply to textual_inversion, which leaves the model unchanged; remove it")
        return self


AnyTrainConfig = Annotated[
    VAETrainConfig | TextTrainConfig | UNetTrainConfig | FineTuneConfig, Field(discriminator="task")
]
train_config: TypeAdapter[Any] = TypeAdapter(AnyTrainConfig)
