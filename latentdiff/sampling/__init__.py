"""Noise schedules, timestep grids and samplers."""
