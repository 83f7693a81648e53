"""What a training YAML may say: one model for each task, every default in one place."""

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
    """Return `template`. Raises InputError unless `{name}` is its only field."""
    try:
        fields = {field[1:] for field in Formatter().parse(template) if field[1] is not None}
    except ValueError as error:
        raise InputError(f"caption_template={template!r}: {error}; write {{{{ or }}}} for a literal brace") from error
    if fields != {("name", "", None)}:
        raise InputError(
            f"caption_template={template!r} must hold {{name}} and no other field; try 'a photo of a {{name}}'"
        )
    return template


def check_colour(colour: str) -> str:
    """Return `colour`. Raises InputError unless it is a name or a code that Pillow knows."""
    try:
        ImageColor.getrgb(colour)
    except ValueError as error:
        raise InputError(f"background={colour!r} is not a colour; try 'black' or '#808080'") from error
    return colour


class DataConfig(Config):
    """Captioned pictures to train on, and held-out ones to evaluate on; docs/data.md describes all settings.

    train, held_out: a folder, zip or tar, shards by a pattern (`{000..012}.tar`) or https://, a parquet file, or a
        Hugging Face dataset (`hf://owner/name`, or one saved to disk). Without `held_out` every 20th picture of `train`
        is held out, or none of fewer than 20.
    resolution: side of the square in pixels. allow_upscale: the largest factor a picture may be enlarged by.
        max_crop: the largest share of its area that may be cropped.
    keep: for each column named, the values to train on. skip: names of pictures to leave out.
    caption_template: makes a caption of the `{name}` of a class. prefix: precedes every caption, and is the caption of
        pictures that have none. tag_dropout: the probability with which each part between commas is dropped.
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
    """The pictures that options of a command describe. Raises InputError."""
    config: DataConfig = validate(TypeAdapter(dict[str, DataConfig]), {"data": values}, "pictures")["data"]
    return config


class OptimConfig(Config):
    """AdamW (Loshchilov & Hutter 2019) or another, with warm-up, then `lr_schedule` to `final_learning_rate`."""

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
    """Where a run keeps its state, and how often it says something.

    `early_stopping`: evaluations without a lower held-out loss after which it ends. `gradient_checkpointing` computes
    the way forward twice to keep less of it.
    """

    output: Path
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"
    gradient_accumulation_steps: PositiveInt = 1
    gradient_checkpointing: bool = False
    early_stopping: PositiveInt | None = None
    checkpoint_every: PositiveInt = 500
    sample_every: PositiveInt = 500
    log_every: PositiveInt = 50
    tracker: Literal["auto", "none", "tensorboard", "wandb", "mlflow"] = "auto"


class TrainConfig(Config):
    """What all tasks share."""

    task: str
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    run: RunConfig

    @model_validator(mode="after")
    def _only_denoisers_compute_twice(self) -> Self:
        if self.run.gradient_checkpointing and not isinstance(self, DenoiserConfig):
            raise ValueError("run.gradient_checkpointing is of U-Nets; leave it out")
        return self


class VAETrainConfig(TrainConfig):
    """Pixels to latents and back: L1 + gradient difference + KL, and a patch discriminator when weighted.

    From scratch, or from the weights in `init`. Without `train_encoder` only the decoder learns: latents, and what
    was trained on them, stay as they are. With `latent_noise` it decodes latents that are off by noise, as a denoiser's
    are: by up to so many of the latents' deviations, evenly drawn for each picture. A `gradient_exponent` of
    about a half makes plain areas plain.
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
    def _a_frozen_encoder_comes_from_somewhere(self) -> Self:
        if not self.train_encoder and self.init is None:
            raise ValueError("train_encoder: false needs init, the folder of a VAE")
        return self


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

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size={self.hidden_size} must be a multiple of heads={self.heads}")
        return self


class MetricsConfig(Config):
    """Metrics at each look at a denoiser: `num` held-out captions drawn from fixed seeds, against their pictures.

    `features`, `weights`, `judge` and `names` are those of `latentdiff evaluate`.
    """

    num: PositiveInt = 64
    names: Annotated[tuple[str, ...], Field(min_length=1)] = ("frechet", "kernel")
    features: str = "efficientnet-lite0"
    weights: str | None = None
    judge: str | None = None


class DenoiserConfig(TrainConfig):
    """A U-Net in the latent space of a frozen VAE, conditioned by a frozen text encoder.

    Timesteps are drawn with a density that grows like t ** (timestep_power - 1): evenly at 1, towards noise above.
    `noise_offset` is the deviation of a shift of each channel's noise (Guttenberg 2023); errors over `huber_delta`
    count linearly, all count squared without it.
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
    """A U-Net from scratch, or from the weights in `init`; the text encoder along with it, if asked.

    `vae`: the folder of a VAE, or null for pixel space: RGB with three channels, grey with one.
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
    """Prior preservation (Ruiz et al. 2023, sec. 3.2): pictures of the class that must not be forgotten.

    `images` are drawn by the base model from `prompt` into `folder` when they are missing there; their loss counts
    `weight` times. Pictures of both kinds come equally often.
    """

    prompt: str
    images: PositiveInt = 100
    weight: PositiveFloat = 1.0
    folder: Path | None = None


class BaseOptions(Config):
    """How the base model of a fine-tune is opened; see `checkpoints.source.OpenOptions`."""

    vae: str | None = None
    unet: str | None = None
    variant: str | None = None
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    allow_pickle: bool = False


class FineTuneConfig(DenoiserConfig):
    """A model that exists, taught more.

    `lora` and `dora` train low-rank pairs beside the U-Net's layers, and the text encoder's with `text_encoder`;
    `full` the U-Net itself; `textual_inversion` only `vectors` new rows for the word `data.prefix`, which begin as
    `init_word`. `base`: a model folder, file or hub id; the bundled model if not given.
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
    def _nothing_is_asked_in_vain(self) -> Self:
        if self.text_encoder and self.method not in ("lora", "dora"):
            raise ValueError(f"text_encoder: true is of the methods lora and dora, not {self.method}; leave it out")
        if self.prior and self.method == "textual_inversion":
            raise ValueError("prior is of methods that change the model, and textual_inversion does not; leave it out")
        return self


AnyTrainConfig = Annotated[
    VAETrainConfig | TextTrainConfig | UNetTrainConfig | FineTuneConfig, Field(discriminator="task")
]
train_config: TypeAdapter[Any] = TypeAdapter(AnyTrainConfig)
