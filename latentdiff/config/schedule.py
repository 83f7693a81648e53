"""Config of the noise schedule: diffusers' `scheduler_config.json`, for the scheduler classes of SD 1, 2 and XL."""

import math
from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from latentdiff.config.diffusers_json import ModelConfig
from latentdiff.errors import CheckpointError, did_you_mean, shorten

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
PredictionType = Literal["epsilon", "sample", "v_prediction", "flow"]
Spacing = Literal["leading", "trailing", "linspace", "karras", "exponential", "beta"]
SIGMA_SPACINGS: tuple[Spacing, ...] = ("karras", "exponential", "beta")
Positive = Annotated[float, Field(gt=0, lt=1e4, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=1e-8, lt=1)]
FLOW = "FlowMatchEulerDiscreteScheduler"

# Defaults of diffusers' classes for missing keys, and our equivalent sampler.
NOISE = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "steps_offset": 0}
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIMScheduler": ("ddim", {"clip_sample": True, "set_alpha_to_one": True, "timestep_spacing": "leading"}),
    "DDPMScheduler": ("ddpm", {"clip_sample": True, "timestep_spacing": "leading", "variance_type": "fixed_small"}),
    "PNDMScheduler": ("ddim", {"set_alpha_to_one": False, "timestep_spacing": "leading"}),
    "EulerDiscreteScheduler": ("euler", {"timestep_spacing": "linspace"}),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", {"timestep_spacing": "linspace"}),
    "HeunDiscreteScheduler": ("heun", {"timestep_spacing": "linspace", "beta_start": 0.00085, "beta_end": 0.012}),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", {"timestep_spacing": "linspace", "algorithm_type": "dpmsolver++"}),
    "LCMScheduler": (
        "lcm",
        {
            "timestep_spacing": "leading",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "set_alpha_to_one": True,
        },
    ),
    FLOW: ("euler", {"timestep_spacing": "trailing", "prediction_type": "flow"}),
}
# Classes whose noise levels are read, but whose sampler is not implemented: the user must choose one.
LEVELS_ONLY: dict[str, dict[str, Any]] = {
    "KDPM2DiscreteScheduler": {"timestep_spacing": "linspace", "beta_start": 0.00085, "beta_end": 0.012},
    "KDPM2AncestralDiscreteScheduler": {"timestep_spacing": "linspace", "beta_start": 0.00085, "beta_end": 0.012},
    "LMSDiscreteScheduler": {"timestep_spacing": "linspace"},
    "DEISMultistepScheduler": {"timestep_spacing": "linspace"},
    "DPMSolverSinglestepScheduler": {"timestep_spacing": "linspace"},
    "UniPCMultistepScheduler": {"timestep_spacing": "linspace"},
    "TCDScheduler": CLASSES["LCMScheduler"][1],
}
# Keys that change the noise levels or the meaning of the prediction: other values are rejected.
ONLY: dict[str, tuple[Any, ...]] = {
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "invert_sigmas": (False, None),
    "stochastic_sampling": (False, None),
    "shift_terminal": (None,),
}
# Keys that change the sampler, with the values that our equivalent sampler implements.
SAMPLED: dict[str, dict[str, tuple[Any, ...]]] = {
    "DDPMScheduler": {"variance_type": ("fixed_small", None)},
    "DPMSolverMultistepScheduler": {
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
        "solver_order": (2,),
        "solver_type": ("midpoint",),
        "lower_order_final": (True,),
        "variance_type": (None,),
        "lambda_min_clipped": (-math.inf, "-inf", None),
    },
    "LCMScheduler": {"original_inference_steps": (50,), "timestep_scaling": (10.0,)},
}
# Keys that are read only with others, or change nothing: PNDM's warm-up and UniPC's corrector are not computed.
WITHOUT_EFFECT = (
    "skip_prk_steps", "disable_corrector", "solver_p", "predict_x0", "flow_shift", "time_shift_type", "base_shift",
    "max_shift", "base_image_seq_len", "max_image_seq_len", "euler_at_final", "use_karras_sigmas",
    "use_exponential_sigmas", "use_beta_sigmas",
)  # fmt: skip


class ScheduleConfig(ModelConfig):
    """Noise levels, prediction type and default sampler of a model; also `flow` and its `shift`.

    sampler: the default. unsupported: the reason why the sampler in the file is not implemented, in which case the
    user must choose one.
    """

    num_train_timesteps: Annotated[int, Field(ge=1, le=100_000)] = 1000
    beta_schedule: BetaSchedule = "scaled_linear"
    beta_start: Beta = 0.00085
    beta_end: Beta = 0.012
    trained_betas: tuple[Beta, ...] | None = None
    prediction_type: PredictionType = "epsilon"
    rescale_betas_zero_snr: bool = False
    timestep_spacing: Spacing = "leading"
    steps_offset: Annotated[int, Field(ge=0, le=100_000)] = 1
    set_alpha_to_one: bool = False
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    shift: Positive = 1.0
    clip_sample: bool = False
    clip_sample_range: Positive = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: Annotated[float, Field(gt=0, le=1)] = 0.995
    sample_max_value: Positive = 1.0
    sampler: str = "ddim"
    unsupported: str = ""

    @model_validator(mode="after")
    def _one_beta_a_timestep(self) -> Self:
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ValueError(f"trained_betas has {len(self.trained_betas)} values for {self.num_train_timesteps} steps")
        return self

    @classmethod
    def read(cls, raw: dict[str, Any], where: str) -> Self:
        """Validate a diffusers dictionary: every key is used, or rejected by name.

        Raises CheckpointError for an unsupported class or value.
        """
        name = raw.get("_class_name")
        sampler, defaults = cls._class(name, where)
        for key, supported in ONLY.items():
            if key in raw and raw[key] not in supported:
                raise CheckpointError(f"{where}: {key}={raw[key]!r} is not supported; use another checkpoint")
        values = defaults | {key: value for key, value in raw.items() if value is not None}
        for spacing in SIGMA_SPACINGS:
            if not isinstance(given := values.get(f"use_{spacing}_sigmas", False), bool):
                raise CheckpointError(f"{where}: use_{spacing}_sigmas={shorten(given)} must be true or false")
        spacings = [spacing for spacing in SIGMA_SPACINGS if values.get(f"use_{spacing}_sigmas")]
        if len(spacings) > 1:
            raise CheckpointError(f"{where}: use_{spacings[0]}_sigmas and use_{spacings[1]}_sigmas exclude each other")
        if values.get("algorithm_type") == "sde-dpmsolver++" and sampler == "dpmpp_2m":
            sampler = "dpmpp_2m_sde"
        found = {"timestep_spacing": spacings[0]} if spacings else {}
        own = {"sampler": sampler, "unsupported": _unsupported(name, values)}
        return super().read(values | found | own, where)

    @classmethod
    def _class(cls, name: Any, where: str) -> tuple[str, dict[str, Any]]:
        """The sampler and the defaults of the class in the file, or ours if it names none."""
        if name is None:
            return "ddim", {}
        if name in CLASSES:
            sampler, defaults = CLASSES[name]
            return sampler, NOISE | defaults
        if name in LEVELS_ONLY:
            return "", NOISE | LEVELS_ONLY[name]
        known = [*CLASSES, *LEVELS_ONLY]
        raise CheckpointError(f"{where}: _class_name={name!r} is not supported; {did_you_mean(str(name), known)}")

    @classmethod
    def _class_name(cls) -> str:
        return "DDIMScheduler"

    @classmethod
    def _without_effect(cls) -> Collection[str]:
        return {*WITHOUT_EFFECT, *ONLY, *(key for keys in SAMPLED.values() for key in keys)}

    @property
    def class_name(self) -> str:
        """The class of diffusers that is equivalent to the sampler."""
        if self.prediction_type == "flow":
            return FLOW
        names = {sampler: name for name, (sampler, _) in reversed(CLASSES.items())} | {"ddim": "DDIMScheduler"}
        names |= {"dpmpp_2m_sde": "DPMSolverMultistepScheduler", "euler": "EulerDiscreteScheduler"}
        return names.get(self.sampler, "DDIMScheduler")

    def write(self) -> dict[str, Any]:
        """The dictionary in diffusers' format; for flow, with our keys, since no U-Net pipeline of diffusers has it."""
        out = super().write() | {"_class_name": self.class_name}
        del out["sampler"], out["unsupported"]
        if self.timestep_spacing in SIGMA_SPACINGS:
            out |= {"timestep_spacing": "linspace", f"use_{self.timestep_spacing}_sigmas": True}
        if self.sampler == "dpmpp_2m_sde":
            out["algorithm_type"] = "sde-dpmsolver++"
        return out


def _unsupported(name: str | None, values: dict[str, Any]) -> str:
    """The reason why the sampler of the file is not implemented, or an empty string."""
    if name in LEVELS_ONLY:
        return f"{name} is not implemented as a sampler"
    for key, supported in SAMPLED.get(name or "", {}).items():
        if key in values and values[key] not in supported:
            return f"{key}={values[key]!r} is not implemented"
    return ""
