"""Parts of a sampling plan between two fractions, so that one model can continue the sampling of another."""

from collections.abc import Callable

from latentdiff.errors import InputError, check_number
from latentdiff.sampling.samplers import Plan


def part_of(whole: Plan, skipping: Callable[[int], Plan], total: int, start: float | None, end: float | None) -> Plan:
    """The steps of `whole` from `start` to `end`, as diffusers' `denoising_start` and `denoising_end` divide them.

    A fraction f corresponds to the timestep (1 - f) T: steps from that timestep or a higher one come before it.
    skipping: returns the plan without a number of its first steps, which does not use their predictions of x0.
    Raises InputError for fractions outside (0, 1), and if there is no step before or after a fraction.
    """
    for name, value in (("denoising_start", start), ("denoising_end", end)):
        if value is not None and not 0 < check_number(value, name) < 1:
            raise InputError(f"{name}={value} must be between 0 and 1; try 0.8")
    if start is not None and end is not None and start >= end:
        raise InputError(f"denoising_start={start} must be below denoising_end={end}; decrease it")
    part = whole
    if start is not None:
        part = skipping(_count_before(whole, "denoising_start", start, total))
    if end is not None:
        _count_before(whole, "denoising_end", end, total)
        following = next(t for t in whole.timesteps if t < _timestep(end, total))
        if following not in part.timesteps[1:]:
            raise InputError(f"there is no step from denoising_start={start} to denoising_end={end}; use more steps")
        part = _until(part, len(part) - 1 - part.timesteps[::-1].index(following))
    return part


def _timestep(fraction: float, total: int) -> int:
    return round(total - fraction * total)


def _count_before(plan: Plan, name: str, fraction: float, total: int) -> int:
    """The number of steps before a fraction of a plan. Raises InputError if no step is before it, or none after it."""
    steps = sorted(set(plan.timesteps))
    before = sum(timestep >= _timestep(fraction, total) for timestep in steps)
    if before in (0, len(steps)):
        which = "before" if before == 0 else "after"
        raise InputError(f"{name}={fraction} leaves none of {len(steps)} steps {which} it; use more steps, or try 0.8")
    return before


def _until(plan: Plan, count: int) -> Plan:
    """The first `count` evaluations of a plan."""
    return Plan(plan.timesteps[:count], plan.alphas[: count + 1], plan.sigmas[: count + 1], plan.table[:count])
