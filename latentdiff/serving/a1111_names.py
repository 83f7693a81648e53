"""A1111's names of samplers and schedules, as its API sends and expects them (`recipe.names` has the tables)."""

from latentdiff.errors import did_you_mean
from latentdiff.recipe.names import A1111_SAMPLERS, A1111_SCHEDULES
from latentdiff.serving.errors import NotFoundError

SCHEDULERS: dict[str, str | None] = {"Automatic": None, **A1111_SCHEDULES, "Normal": "linspace"}
NAMES = {"Align Your Steps": "align_your_steps", "SGM Uniform": "sgm_uniform", "DDIM": "ddim_uniform"}


def scheduler_name(label: str) -> str:
    """The name by which requests refer to a schedule, given its label."""
    return NAMES.get(label, label.lower())


def a1111_sampler(name: str) -> str:
    """A1111's name of one of our samplers, or our own if A1111 has none."""
    return next((theirs for theirs, ours in A1111_SAMPLERS.items() if ours == name), name)


def find_sampler(name: str) -> tuple[str, str | None]:
    """Our sampler, and our spacing if the name ends in one ("DPM++ 2M Karras"). Raises NotFoundError."""
    lowered = name.strip().lower()
    for label, spacing in SCHEDULERS.items():
        if spacing and lowered.endswith(f" {label.lower()}"):
            return find_sampler(lowered[: -len(label) - 1])[0], spacing
    known = {theirs.lower(): ours for theirs, ours in A1111_SAMPLERS.items()}
    known |= {ours: ours for ours in A1111_SAMPLERS.values()}
    if lowered not in known:
        raise NotFoundError(f"Sampler not found: {name[:80]!r}; {did_you_mean(name, A1111_SAMPLERS)}", "sampler_name")
    return known[lowered], None


def find_scheduler(name: str) -> str | None:
    """Our spacing by A1111's label or name. Raises NotFoundError."""
    for label, spacing in SCHEDULERS.items():
        if name.strip().lower() in (label.lower(), scheduler_name(label)):
            return spacing
    raise NotFoundError(f"Scheduler not found: {name[:80]!r}; {did_you_mean(name, SCHEDULERS)}", "scheduler")
