"""Latent text-to-image diffusion."""
