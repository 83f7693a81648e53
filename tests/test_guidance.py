"""Classifier-free guidance."""

import torch

from latentdiff.guidance import guide


def test_guidance_extrapolates_from_one_batched_call() -> None:
    calls = []

    def denoiser(latents: torch.Tensor, timestep: float) -> torch.Tensor:
        calls.append((len(latents), timestep))
        half = len(latents) // 2
        return torch.cat([latents[:half] * 2, latents[half:] * 3])

    x = torch.randn(3, 2)
    assert torch.allclose(guide(denoiser, 5.0)(x, 7.0), 2 * x + 5 * (3 * x - 2 * x))
    assert torch.allclose(guide(denoiser, 0.0)(x, 7.0), 2 * x)
    assert calls == [(6, 7.0), (6, 7.0)]


def test_outside_its_interval_the_prompt_is_followed_as_it_is() -> None:
    def denoiser(latents: torch.Tensor, timestep: float) -> torch.Tensor:
        return torch.arange(1.0, len(latents) + 1)[:, None] * latents

    x = torch.ones(1, 2)
    guided = guide(denoiser, 5.0, low=200.0, high=800.0)
    assert [guided(x, t)[0, 0].item() for t in (199.0, 200.0, 800.0, 801.0)] == [1, 6, 6, 1]
