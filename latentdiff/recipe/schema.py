"""The recipe of an image: everything that its pixels depend on."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

LoraUse = tuple[str, float, float]  # file or folder, weight for the U-Net, for the text encoders
Pair = tuple[int, int]  # height and width, or top and left


class AnimationRecipe(BaseModel):
    """An animation, or one frame of it. prompts, seeds: of the key frames. frames: from one of them to the next."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    frames: int
    fps: float | None = None
    frame: int | None = None


class Recipe(BaseModel):
    """Everything an image depends on. `model_hash` covers the model, LoRAs and embeddings (see `model_hash`).

    image_hash, mask_hash: the first 16 digits of the SHA-256 of the input files, whose paths are not stored. hashes:
    the first ten digits of the SHA-256 of single files, as "model" and "lora:name", by which model sites identify them.
    original_size to negative_aesthetic_score: the fields of `SizeConditioning`. refiner_hash: like model_hash. safety,
    safety_score, flagged: the action and the result of the content checker. prompt_syntax: missing in the first
    recipes, whose prompts were literal.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    prompt: str
    negative_prompt: str | None = None
    prompt_2: str | None = None
    negative_prompt_2: str | None = None
    prompt_syntax: str = "plain"
    clip_skip: int | None = None
    seed: int
    variation_seed: int | None = None
    variation_strength: float | None = None
    sampler: str
    spacing: str | None = None
    eta: float
    steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    height: int
    width: int
    image_hash: str | None = None
    mask_hash: str | None = None
    strength: float | None = None
    source_prompt: str | None = None
    fit: str | None = None
    extend: dict[str, int] | None = None
    mask_grow: int | None = None
    mask_blur: float | None = None
    mask_fill: str | None = None
    only_masked: int | None = None
    paste_back: bool | None = None
    image_guidance_scale: float | None = None
    tile: int | None = None
    seamless: str | None = None
    hires: float | None = None
    hires_strength: float | None = None
    hires_steps: int | None = None
    upscaler: str | None = None
    original_size: Pair | None = None
    crops_coords_top_left: Pair | None = None
    target_size: Pair | None = None
    negative_original_size: Pair | None = None
    negative_crops_coords_top_left: Pair | None = None
    negative_target_size: Pair | None = None
    aesthetic_score: float | None = None
    negative_aesthetic_score: float | None = None
    refiner: str | None = None
    refiner_switch: float | None = None
    refiner_hash: str | None = None
    animation: AnimationRecipe | None = None
    safety: str | None = None
    safety_score: float | None = None
    flagged: bool | None = None
    dtype: str
    optimize: str = "auto"
    approximate: tuple[str, ...] = ()
    low_memory: bool = False
    model: str | None = None
    vae: str | None = None
    unet: str | None = None
    variant: str | None = None
    prediction_type: str | None = None
    loras: tuple[LoraUse, ...] = ()
    embeddings: tuple[str, ...] = ()
    model_hash: str
    hashes: dict[str, str] = {}
    version: str

    @model_validator(mode="before")
    @classmethod
    def _of_the_first_recipes(cls, raw: Any) -> Any:
        """The first recipes had one LoRA and one embedding, and omitted the default strength of hires."""
        if isinstance(raw, dict) and raw.get("lora") is not None:
            raw = {**raw, "loras": [[raw["lora"], raw.get("lora_scale", 1.0), raw.get("lora_scale", 1.0)]]}
        if isinstance(raw, dict) and raw.get("embedding") is not None:
            raw = {**raw, "embeddings": [raw["embedding"]]}
        if isinstance(raw, dict) and raw.get("hires") is not None and raw.get("hires_strength") is None:
            raw = {**raw, "hires_strength": 0.6}
        return raw
