"""Noise schedules, timestep grids and samplers.

Start with `schedule`, the noise levels, of which `spacings` selects those that a run visits. `sampler_coefficients` has
one table per sampler, `samplers` makes the plan of a run, and `loop` follows it. Noise comes from `seeds` and
`variations`. `denoising_range` and `inversion` change plans; `tiled_denoiser` and `seamless` wrap denoisers.
"""
