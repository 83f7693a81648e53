"""The bodies of txt2img and img2img as A1111's clients send them, and what they mean here."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from latentdiff.images.edit import EditOptions
from latentdiff.serving.a1111_names import find_sampler, find_scheduler
from latentdiff.serving.errors import NotFoundError, ServingError
from latentdiff.serving.models import ModelStore
from latentdiff.serving.uploads import from_base64, image_from, mask_from
from latentdiff.text.prompt_syntax import take_lora_tags


def _lenient(convert: Callable[[Any], Any]) -> BeforeValidator:
    """Numbers come as text, and whole ones as 1.0; what cannot be read is left for the schema to refuse."""

    def read(value: Any) -> Any:
        try:
            return None if value is None or value == "" else convert(value)
        except (TypeError, ValueError, OverflowError):
            return value

    return BeforeValidator(read)


Whole = Annotated[int | None, _lenient(lambda value: int(float(value)))]
Real = Annotated[float | None, _lenient(float)]
Text = Annotated[str | None, _lenient(str)]
Flag = Annotated[bool | None, Field()]
RESIZE_MODES = {0: "stretch", 1: "cover", 2: "contain"}
FILLS = {0: "blur", 1: "original", 2: "noise"}
EXAMPLE: dict[str, Any] = {"prompt": "a red apple", "steps": 20, "width": 128, "height": 128, "seed": 7}


class Txt2Img(BaseModel):
    """Unknown fields are ignored, as A1111 does; known ones that this server has no equivalent for are refused."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [EXAMPLE]})

    prompt: Text = ""
    negative_prompt: Text = ""
    seed: Whole = -1
    subseed_strength: Real = 0
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
    restore_faces: Flag = None
    tiling: Flag = None
    enable_hr: Flag = None
    send_images: Flag = True
    script_name: Text = None
    alwayson_scripts: dict[str, Any] | None = None
    override_settings: dict[str, Any] | None = None
    force_task_id: Text = None
    styles: list[str] | None = None

    def unsupported(self) -> str | None:
        """The first field that asks for something this server does not do."""
        scripts = [name for name, script in (self.alwayson_scripts or {}).items() if _has_arguments(script)]
        asked = {
            "enable_hr": self.enable_hr,
            "restore_faces": self.restore_faces,
            "tiling": self.tiling,
            "subseed_strength": self.subseed_strength,
            "script_name": self.script_name,
            "alwayson_scripts": scripts,
        }
        return next((name for name, value in asked.items() if value), None)


class Img2Img(Txt2Img):
    """With one image, and optionally a mask, white or opaque where it is repainted."""

    init_images: list[str] | None = None
    denoising_strength: Real = 0.75
    resize_mode: Whole = 0
    mask: Text = None
    mask_blur: Whole = None
    mask_blur_x: Whole = 4
    mask_blur_y: Whole = 4
    inpainting_fill: Whole = 0
    inpaint_full_res: bool | Whole = True
    inpaint_full_res_padding: Whole = 0
    inpainting_mask_invert: Whole = 0
    include_init_images: Flag = False

    def editing(self) -> dict[str, Any]:
        """The arguments of image to image. Raises ServingError."""
        if not self.init_images:
            raise NotFoundError("Init image not found: init_images is empty; send one image as base64", "init_images")
        if len(self.init_images) > 1:
            raise ServingError("init_images holds several images; send one for each request", "init_images")
        if self.resize_mode not in RESIZE_MODES:
            raise ServingError(f"resize_mode={self.resize_mode} is not supported; use 0, 1 or 2", "resize_mode")
        image = image_from(from_base64(self.init_images[0], "init_images"), "init_images")
        found: dict[str, Any] = {"image": image, "strength": self.denoising_strength}
        if self.mask is None:
            return found | {"edit": EditOptions(fit=RESIZE_MODES[self.resize_mode])}  # type: ignore[arg-type]
        if self.inpainting_fill not in FILLS:
            raise ServingError(
                f"inpainting_fill={self.inpainting_fill} is not supported; use 0, 1 or 2", "inpainting_fill"
            )
        mask = mask_from(from_base64(self.mask, "mask"), "mask")
        if self.inpainting_mask_invert:
            mask = mask.point([255 - level for level in range(256)])
        blur = self.mask_blur if self.mask_blur is not None else max(self.mask_blur_x or 0, self.mask_blur_y or 0)
        edit = EditOptions(
            fit=RESIZE_MODES[self.resize_mode],  # type: ignore[arg-type]
            mask_blur=float(blur),
            mask_fill=FILLS[self.inpainting_fill],  # type: ignore[arg-type]
            only_masked=(self.inpaint_full_res_padding or 0) if self.inpaint_full_res else None,
        )
        return found | {"mask_image": mask.resize(image.size), "edit": edit}


def arguments(body: Txt2Img, models: ModelStore, model: str) -> dict[str, Any]:
    """The arguments of `Server.request`. Raises ServingError for what is not supported, and for unknown names."""
    if (name := body.unsupported()) is not None:
        error = ServingError(f"{name} is not supported by this server; leave it out", name)
        error.status = 422
        raise error
    prompt, tags = take_lora_tags(body.prompt or "")
    loras = {models.find_lora(tag.name): (tag.unet_weight, tag.text_weight) for tag in tags}
    name = body.sampler_name or body.sampler_index
    sampler, spacing = (None, None) if name is None else find_sampler(name)
    if body.scheduler is not None:
        spacing = find_scheduler(body.scheduler) or spacing
    checkpoint = (body.override_settings or {}).get("sd_model_checkpoint")
    return {
        "prompt": prompt,
        "negative_prompt": take_lora_tags(body.negative_prompt or "")[0],
        "model": find_checkpoint(str(checkpoint), models) if checkpoint else model,
        "images": (body.batch_size or 1) * (body.n_iter or 1),
        "seed": None if body.seed is None or body.seed < 0 else body.seed,
        "height": body.height,
        "width": body.width,
        "steps": body.steps,
        "guidance_scale": body.cfg_scale,
        "sampler": sampler,
        "spacing": spacing,
        "eta": None if body.eta == 1 and sampler != "ddim" else body.eta or None,  # clients send 1, A1111's usual
        "loras": loras,
    }


def find_checkpoint(name: str, models: ModelStore) -> str:
    """A model by its title, stem or hash. Raises NotFoundError."""
    for known in models.specs:
        facts = models.facts.get(known)
        names = {known.lower(), f"{known}.safetensors".lower()} | ({facts.hash, facts.hash[:10]} if facts else set())
        if name.partition(" [")[0].lower() in names or name.lower() in names:
            return known
    return models.find(name)


def _has_arguments(script: Any) -> bool:
    """Whether a script entry asks for anything; clients send an empty ControlNet."""
    units = script.get("args") if isinstance(script, dict) else script
    if not isinstance(units, list):
        return bool(units)
    return any(unit.get("enabled", True) if isinstance(unit, dict) else unit for unit in units)
