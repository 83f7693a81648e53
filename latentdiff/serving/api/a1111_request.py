"""The bodies of txt2img and img2img as A1111's clients send them."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _lenient(convert: Callable[[Any], Any]) -> BeforeValidator:
    """Accept numbers as text and integers as 1.0; the schema refuses what cannot be converted."""

    def read(value: Any) -> Any:
        try:
            return None if value is None or value == "" else convert(value)
        except (TypeError, ValueError, OverflowError):
            return value

    return BeforeValidator(read)


def _whole(value: Any) -> int:
    try:
        return int(value if isinstance(value, str) else str(value))
    except ValueError:
        return int(float(value))


Whole = Annotated[int | None, _lenient(_whole)]
Real = Annotated[float | None, _lenient(float)]
Text = Annotated[str | None, _lenient(str)]
Flag = Annotated[bool | None, Field()]
EXAMPLE: dict[str, Any] = {"prompt": "a red apple", "steps": 20, "width": 128, "height": 128, "seed": 7}


class Txt2Img(BaseModel):
    """Unknown fields are ignored, as in A1111; known fields without an equivalent in this server are refused."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [EXAMPLE]})

    prompt: Text = ""
    negative_prompt: Text = ""
    styles: list[str] | None = None
    seed: Whole = -1
    subseed: Whole = -1
    subseed_strength: Real = 0
    seed_resize_from_h: Whole = -1
    seed_resize_from_w: Whole = -1
    sampler_name: Text = None
    sampler_index: Text = None
    scheduler: Text = None
    batch_size: Whole = 1
    n_iter: Whole = 1
    steps: Whole = None
    cfg_scale: Real = None
    width: Whole = None
    height: Whole = None
    eta: Real = None
    s_churn: Real = None
    s_noise: Real = None
    s_min_uncond: Real = None
    restore_faces: Flag = None
    tiling: Flag = None
    denoising_strength: Real = None
    refiner_checkpoint: Text = None
    enable_hr: Flag = None
    firstphase_width: Whole = 0
    firstphase_height: Whole = 0
    firstpass_image: Text = None
    hr_scale: Real = 2.0
    hr_upscaler: Text = None
    hr_second_pass_steps: Whole = 0
    hr_resize_x: Whole = 0
    hr_resize_y: Whole = 0
    hr_checkpoint_name: Text = None
    hr_sampler_name: Text = None
    hr_scheduler: Text = None
    hr_prompt: Text = ""
    hr_negative_prompt: Text = ""
    hr_cfg: Real = None
    send_images: Flag = True
    script_name: Text = None
    alwayson_scripts: dict[str, Any] | None = None
    override_settings: dict[str, Any] | None = None
    force_task_id: Text = None
    infotext: Text = None


class Img2Img(Txt2Img):
    """With one image, and optionally a mask, white or opaque where it is repainted."""

    init_images: list[str] | None = None
    denoising_strength: Real = 0.75
    image_cfg_scale: Real = None
    resize_mode: Whole = 0
    mask: Text = None
    latent_mask: Text = None
    mask_round: Flag = True
    mask_blur: Whole = None
    mask_blur_x: Whole = 4
    mask_blur_y: Whole = 4
    inpainting_fill: Whole = 0
    inpaint_full_res: bool | Whole = True
    inpaint_full_res_padding: Whole = 0
    inpainting_mask_invert: Whole = 0
    initial_noise_multiplier: Real = None
    include_init_images: Flag = False
