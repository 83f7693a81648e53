"""Schema of training configs: one class per task, with all defaults."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    model_validator,
)

from latentdiff.config.base import Config, refuse_given
from latentdiff.config.data import DataConfig, Probability
from latentdiff.config.model import UNetConfig, VAEConfig
from latentdiff.config.schedule import ScheduleConfig


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

    @model_validator(mode="after")
    def _a_constant_rate_has_no_final_value(self) -> Self:
        if self.lr_schedule == "constant":
            refuse_given(self, ["final_learning_rate"], "with lr_schedule: constant")
        return self


class RunConfig(Config):
    """Output folder, precision, and intervals of logging, evaluation and checkpoints, in optimiser steps.

    compile: compile the U-Net with torch.compile at the first step, which takes a minute or two and needs a compiler.
    early_stopping: number of evaluations without a lower held-out loss after which the run ends.
    gradient_checkpointing: recompute activations in the backward pass, to use less memory.
    mixed_precision: "auto" is bf16, or "no" on CPUs without bfloat16 instructions; a resumed run keeps its precision.
    """

    output: Path
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    gradient_accumulation_steps: PositiveInt = 1
    gradient_checkpointing: bool = False
    compile: bool = False
    early_stopping: PositiveInt | None = None
    checkpoint_every: PositiveInt = 500
    sample_every: PositiveInt = 500
    log_every: PositiveInt = 50
    tracker: Literal["auto", "none", "tensorboard", "wandb", "mlflow"] = "auto"


CAPTION_SETTINGS = ("caption_template", "prefix", "shuffle_captions", "tag_dropout")  # of the data


class TrainConfig(Config):
    """Settings that all tasks share."""

    task: str
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    run: RunConfig

    @model_validator(mode="after")
    def _settings_apply_to_the_task(self) -> Self:
        if isinstance(self, DenoiserConfig):
            return self
        of_unets = "gradient_checkpointing", "compile"
        refuse_given(self.run, of_unets, f"in task {self.task}, which trains no U-Net", "run.")
        refuse_given(self.data, ("crop", "max_crop"), f"in task {self.task}, which reads centre squares", "data.")
        if isinstance(self, VAETrainConfig):
            refuse_given(self.data, CAPTION_SETTINGS, "in task vae, which reads no captions", "data.")
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

    @model_validator(mode="after")
    def _settings_of_losses_have_an_effect(self) -> Self:
        if not self.adversarial_weight:
            refuse_given(self, ["adversarial_start"], "without adversarial_weight")
        elif self.adversarial_start >= self.optim.max_steps:
            start, steps = self.adversarial_start, self.optim.max_steps
            raise ValueError(f"adversarial_start={start} must be less than optim.max_steps={steps}; lower it")
        if not self.gradient_weight:
            refuse_given(self, ["gradient_exponent"], "with gradient_weight: 0")
        if not self.train_encoder and self.kl_weight:
            refuse_given(self, ["kl_weight"], "with train_encoder: false")
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
    def _settings_of_the_schedule_have_an_effect(self) -> Self:
        schedule = self.schedule
        if schedule.prediction_type != "flow":
            refuse_given(schedule, ["shift"], "without prediction_type: flow", "schedule.")
        if not schedule.clip_sample:
            refuse_given(schedule, ["clip_sample_range"], "without clip_sample: true", "schedule.")
        if not schedule.thresholding:
            names = "dynamic_thresholding_ratio", "sample_max_value"
            refuse_given(schedule, names, "without thresholding: true", "schedule.")
        return self

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


METHODS_OF = {  # of fine-tuning, by the settings that only they read
    "rank": ("lora", "dora"),
    "text_encoder": ("lora", "dora"),
    "init_word": ("textual_inversion",),
    "vectors": ("textual_inversion",),
}


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
        for name, methods in METHODS_OF.items():
            value, unused = getattr(self, name), type(self).model_fields[name].default
            if self.method not in methods and value != unused:
                raise ValueError(f"{name}={value} applies to {' and '.join(methods)}, not to {self.method}; remove it")
        if not (self.sample_prompts or self.metrics or self.prior):
            refuse_given(self, ("sample_steps", "guidance_scale"), "without sample_prompts, metrics or prior")
        if self.prior and self.method == "textual_inversion":
            raise ValueError("prior does not apply to textual_inversion, which leaves the model unchanged; remove it")
        return self


AnyTrainConfig = Annotated[
    VAETrainConfig | TextTrainConfig | UNetTrainConfig | FineTuneConfig, Field(discriminator="task")
]
train_config: TypeAdapter[Any] = TypeAdapter(AnyTrainConfig)
