"""AUTOMATIC1111's names of samplers and schedules, and ours."""

from latentdiff.errors import did_you_mean
from latentdiff.serving.errors import NotFoundError

SAMPLERS = {
    "DPM++ 2M": "dpmpp_2m",
    "DPM++ 2M SDE": "dpmpp_2m_sde",
    "Euler a": "euler_ancestral",
    "Euler": "euler",
    "Heun": "heun",
    "LCM": "lcm",
    "DDIM": "ddim",
    "DDPM": "ddpm",
}
SCHEDULERS = {
    "Automatic": None,
    "Karras": "karras",
    "Exponential": "exponential",
    "Beta": "beta",
    "SGM Uniform": "trailing",
    "DDIM": "leading",
    "Uniform": "linspace",
    "Normal": "linspace",
}
SCHEDULER_NAMES = {"SGM Uniform": "sgm_uniform", "DDIM": "ddim_uniform"}


def scheduler_name(label: str) -> str:
    """The name in requests of a schedule's label."""
    return SCHEDULER_NAMES.get(label, label.lower())


def a1111_sampler(name: str) -> str:
    """A1111's name for one of our samplers; our own where A1111 has none."""
    return next((theirs for theirs, ours in SAMPLERS.items() if ours == name), name)


def a1111_scheduler(spacing: str | None) -> str:
    """A1111's label for one of our spacings; our own name where A1111 has none."""
    return next((label for label, ours in SCHEDULERS.items() if ours == spacing), str(spacing))


def find_sampler(name: str) -> tuple[str, str | None]:
    """Our sampler, and the spacing where the name ends in one ("DPM++ 2M Karras"). Raises NotFoundError."""
    lowered = name.strip().lower()
    for label, spacing in SCHEDULERS.items():
        if spacing and lowered.endswith(f" {label.lower()}"):
            return find_sampler(lowered[: -len(label) - 1])[0], spacing
    known = {theirs.lower(): ours for theirs, ours in SAMPLERS.items()} | {ours: ours for ours in SAMPLERS.values()}
    if lowered not in known:
        raise NotFoundError(f"Sampler not found: {name[:80]!r}; {did_you_mean(name, SAMPLERS)}", "sampler_name")
    return known[lowered], None


def find_scheduler(name: str) -> str | None:
    """Our spacing by A1111's label or name. Raises NotFoundError."""
    for label, spacing in SCHEDULERS.items():
        if name.strip().lower() in (label.lower(), scheduler_name(label)):
            return spacing
    raise NotFoundError(f"Scheduler not found: {name[:80]!r}; {did_you_mean(name, SCHEDULERS)}", "scheduler")
