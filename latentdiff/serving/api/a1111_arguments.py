"""Convert bodies of A1111's clients to arguments of `Server.request`; unsupported fields are refused by name."""

from collections.abc import Iterator
from typing import Any, TypeVar

from latentdiff.errors import check_integer
from latentdiff.hires import LATENT, PIXEL, Hires
from latentdiff.images.edit import EditOptions
from latentdiff.recipe.infotext import parse_infotext
from latentdiff.serving.a1111_names import SCHEDULERS, a1111_sampler, find_sampler, find_scheduler
from latentdiff.serving.api.a1111_request import Img2Img, Txt2Img
from latentdiff.serving.engine import Engine
from latentdiff.serving.errors import NotFoundError, ServingError, UnsupportedError
from latentdiff.serving.limits import Limits
from latentdiff.serving.models import ModelStore
from latentdiff.serving.uploads import from_base64, image_from, mask_from

Body = TypeVar("Body", bound=Txt2Img)
RESIZE_MODES = {0: "stretch", 1: "cover", 2: "contain"}
FILLS = {0: "blur", 1: "original", 2: "noise"}
HIRES_STRENGTH = 0.75  # A1111's
HIRES_UPSCALERS = {"latent": LATENT, "latent (bicubic)": LATENT, "none": PIXEL, "lanczos": PIXEL}

# Fields and options without an equivalent here, and the values that have no effect, besides empty ones.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "restore_faces": (),
    "styles": (),
    "seed_resize_from_h": (-1,),
    "seed_resize_from_w": (-1,),
    "s_churn": (),
    "s_noise": (1,),
    "s_min_uncond": (),
    "refiner_checkpoint": ("none",),
    "firstphase_width": (),
    "firstphase_height": (),
    "firstpass_image": (),
    "script_name": ("none",),
    "initial_noise_multiplier": (1,),
    "latent_mask": (),
}
UNSUPPORTED_OPTIONS: dict[str, tuple[Any, ...]] = {
    "sd_vae": ("automatic", "none", "undefined"),
    "sd_hypernetwork": ("none",),
    "eta_noise_seed_delta": (),
    "img2img_fix_steps": (),
    "initial_noise_multiplier": (1,),
    "inpainting_mask_weight": (1,),
    "comma_padding_backtrack": (20,),
}


def arguments(body: Txt2Img, engine: Engine, model: str) -> dict[str, Any]:
    """The arguments of `Server.request`. Raises ServingError for what is not supported, and for unknown names."""
    if (name := next(_unsupported(body), None)) is not None:
        raise UnsupportedError(name)
    options = body.override_settings or {}
    name = body.sampler_name or body.sampler_index
    sampler, spacing = (None, None) if name is None else find_sampler(name)
    if body.scheduler is not None:
        spacing = find_scheduler(body.scheduler) or spacing
    checkpoint = options.get("sd_model_checkpoint")
    return {
        "prompt": body.prompt or "",
        "negative_prompt": body.negative_prompt,
        "model": find_checkpoint(str(checkpoint), engine.models) if checkpoint else model,
        "images": _count(body.batch_size, "batch_size") * _count(body.n_iter, "n_iter"),
        "seed": _seed(body.seed),
        "variation_seed": _seed(body.subseed) if body.subseed_strength else None,
        "variation_strength": body.subseed_strength or None,
        "height": body.height,
        "width": body.width,
        "steps": body.steps,
        "guidance_scale": body.cfg_scale,
        "sampler": sampler,
        "spacing": spacing,
        "eta": None if body.eta == 1 and sampler != "ddim" else body.eta or None,  # clients send 1, A1111's default
        "clip_skip": _clip_skip(options.get("CLIP_stop_at_last_layers")),
        "seamless": "x,y" if body.tiling else None,
        "hires": _hires(body, engine) if body.enable_hr else None,
    }


def editing(body: Img2Img) -> dict[str, Any]:
    """The arguments of image to image. Raises ServingError."""
    if not body.init_images:
        raise NotFoundError("Init image not found: init_images is empty; send one image as base64", "init_images")
    if len(body.init_images) > 1:
        raise ServingError("init_images contains several images; send one per request", "init_images")
    if body.resize_mode not in RESIZE_MODES:
        raise ServingError(f"resize_mode={body.resize_mode} is not supported; use 0, 1 or 2", "resize_mode")
    image = image_from(from_base64(body.init_images[0], "init_images"), "init_images")
    fit: Any = RESIZE_MODES[body.resize_mode]
    guidance = body.image_cfg_scale or EditOptions.image_guidance_scale
    found: dict[str, Any] = {"image": image, "strength": body.denoising_strength}
    if body.mask is None:
        return found | {"edit": EditOptions(fit=fit, image_guidance_scale=guidance)}
    fill: Any = FILLS.get(body.inpainting_fill or 0)
    if fill is None:
        raise ServingError(f"inpainting_fill={body.inpainting_fill} is not supported; use 0, 1 or 2", "inpainting_fill")
    mask = mask_from(from_base64(body.mask, "mask"), "mask")
    if body.inpainting_mask_invert:
        mask = mask.point([255 - level for level in range(256)])
    if body.denoising_strength in (None, 1):  # nothing is left of what the masked area starts from
        fill = EditOptions.mask_fill
    padding = (body.inpaint_full_res_padding or 0) if body.inpaint_full_res else None
    if padding is not None:  # the crop has the aspect ratio of the output
        fit = EditOptions.fit
    edit = EditOptions(
        fit, mask_blur=_mask_blur(body), mask_fill=fill, only_masked=padding, image_guidance_scale=guidance
    )
    return found | {"mask_image": mask.resize(image.size), "edit": edit}


def fill_from_infotext(body: Body, limits: Limits) -> Body:
    """Fields that the request omits, taken from `infotext`. Raises ServingError if it contains no settings, or is too
    long.
    """
    if not body.infotext:
        return body
    limits.check("infotext length", len(body.infotext), limits.prompt_characters, "characters")
    if (parsed := parse_infotext(body.infotext)) is None:
        raise ServingError("infotext contains no settings; send the text that png-info returns, or omit it")
    found = dict(parsed[0])
    if "guidance_scale" in found:
        found["cfg_scale"] = found.pop("guidance_scale")
    if "strength" in found:
        found["denoising_strength"] = found.pop("strength")
    if "variation_strength" in found:
        found["subseed_strength"], found["subseed"] = found.pop("variation_strength"), found.get("variation_seed")
    if "sampler" in found:
        found["sampler_name"] = a1111_sampler(found.pop("sampler"))
    if spacing := found.pop("spacing", None):
        found["scheduler"] = next(label for label, ours in SCHEDULERS.items() if ours == spacing)
    if clip_skip := found.pop("clip_skip", None):
        found["override_settings"] = {"CLIP_stop_at_last_layers": clip_skip + 1} | (body.override_settings or {})
    if (scale := found.pop("hires", None)) is not None and "enable_hr" in type(body).model_fields:
        found |= {"enable_hr": True, "hr_scale": scale, "hr_upscaler": found.pop("upscaler", PIXEL)}
        found |= {"denoising_strength": found.pop("hires_strength", None)}
        found |= {"hr_second_pass_steps": found.pop("hires_steps", 0)}
    if found.pop("seamless", None):
        found["tiling"] = True
    left_out = {name for name in type(body).model_fields if name not in body.model_fields_set}
    return body.model_copy(
        update={name: value for name, value in found.items() if name in left_out | {"override_settings"}}
    )


def find_checkpoint(name: str, models: ModelStore) -> str:
    """A model by its title, stem or hash. Raises NotFoundError."""
    for known in models.specs:
        facts = models.facts.get(known)
        names = {known.lower(), f"{known}.safetensors".lower()} | ({facts.hash, facts.hash[:10]} if facts else set())
        if name.partition(" [")[0].lower() in names or name.lower() in names:
            return known
    return models.find(name)


def _count(value: int | None, name: str) -> int:
    return check_integer(value or 1, name, 1)


def _seed(value: int | None) -> int | None:
    """A negative seed is random."""
    return None if value is None or value < 0 else value


def _unsupported(body: Txt2Img) -> Iterator[str]:
    """The names of fields that request something unsupported."""
    for name, neutral in UNSUPPORTED.items():
        if not _changes_nothing(getattr(body, name, None), neutral):
            yield name
    for name, neutral in UNSUPPORTED_OPTIONS.items():
        if not _changes_nothing((body.override_settings or {}).get(name), neutral):
            yield f"override_settings.{name}"
    if getattr(body, "mask_round", None) is False:
        yield "mask_round"
    for script in (body.alwayson_scripts or {}).values():
        if _has_arguments(script):
            yield "alwayson_scripts"
    if body.enable_hr:
        same = {
            "hr_checkpoint_name": ("use same checkpoint",),
            "hr_sampler_name": ("use same sampler", body.sampler_name),
            "hr_scheduler": ("use same scheduler", body.scheduler),
            "hr_prompt": (body.prompt,),
            "hr_negative_prompt": (body.negative_prompt,),
            "hr_cfg": (body.cfg_scale,),
        }
        yield from (name for name, neutral in same.items() if not _changes_nothing(getattr(body, name), neutral))


def _changes_nothing(value: Any, neutral: tuple[Any, ...]) -> bool:
    return not value or value in neutral or (isinstance(value, str) and value.lower() in neutral)


def _has_arguments(script: Any) -> bool:
    """Whether a script entry has an effect; clients send an empty ControlNet."""
    units = script.get("args") if isinstance(script, dict) else script
    if not isinstance(units, list):
        return bool(units)
    return any(unit.get("enabled", True) if isinstance(unit, dict) else unit for unit in units)


def _clip_skip(stop_at: Any) -> int | None:
    """A1111 counts layers from the last one, so 1 skips none; some clients send 1.0."""
    try:
        return max(0, int(float(stop_at)) - 1) or None if stop_at else None
    except (TypeError, ValueError, OverflowError):
        name = "override_settings.CLIP_stop_at_last_layers"
        raise ServingError(f"{name}={str(stop_at)[:40]!r} is not a number; try 1", name) from None


def _hires(body: Txt2Img, engine: Engine) -> Hires:
    strength = HIRES_STRENGTH if body.denoising_strength is None else body.denoising_strength
    name = body.hr_upscaler or "Latent"
    upscaler = HIRES_UPSCALERS.get(name.lower()) or engine.upscalers.find(name)
    return Hires(_hires_scale(body), strength, body.hr_second_pass_steps or None, upscaler)


def _hires_scale(body: Txt2Img) -> float:
    """hr_scale, or the factor implied by hr_resize_x and hr_resize_y. Raises ServingError if they change the shape."""
    scales = {
        target / side for target, side in ((body.hr_resize_x, body.width), (body.hr_resize_y, body.height))
        if target and side
    }  # fmt: skip
    if (body.hr_resize_x and not body.width) or (body.hr_resize_y and not body.height):
        raise ServingError("hr_resize_x and hr_resize_y need width and height; send hr_scale instead", "hr_resize_x")
    if len(scales) > 1:
        raise ServingError(
            f"hr_resize_x={body.hr_resize_x} and hr_resize_y={body.hr_resize_y} change the shape of "
            f"{body.width}x{body.height}, which is not supported; send hr_scale, or one of them",
            "hr_resize_x",
        )
    return scales.pop() if scales else body.hr_scale or 2.0


def _mask_blur(body: Img2Img) -> float:
    if body.mask_blur is not None:
        return float(body.mask_blur)
    if body.mask_blur_x != body.mask_blur_y:
        raise ServingError(
            f"mask_blur_x={body.mask_blur_x} and mask_blur_y={body.mask_blur_y} differ, which is not supported; "
            "send mask_blur",
            "mask_blur_x",
        )
    return float(body.mask_blur_x or 0)
