"""Conversion of network outputs to x0, and guidance per row."""

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from latentdiff.config.schedule import PredictionType, ScheduleConfig
from latentdiff.denoiser import Guidance, GuidedDenoiser, NetworkDenoiser, Row, bounded, token_groups
from latentdiff.models.conditioning import Conditioning, PromptConditioning
from latentdiff.sampling.loop import Levels, SamplerState
from latentdiff.sampling.samplers import plan
from latentdiff.sampling.schedule import Schedule

KINDS: list[PredictionType] = ["epsilon", "sample", "v_prediction", "flow"]
TOKENS = Conditioning(torch.zeros(1, 1, 1))


def levels_of(schedule: Schedule, *timesteps: int) -> Levels:
    return Levels(timesteps, *([float(t[k]) for k in timesteps] for t in (schedule.alphas, schedule.sigmas)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_prediction_type_gives_x0_of_rows_at_different_levels(kind: PredictionType) -> None:
    schedule = Schedule(ScheduleConfig(prediction_type=kind))
    x0, noise, timesteps = torch.randn(3, 2), torch.randn(3, 2), torch.tensor([20, 600, 600])
    noisy, target = schedule.add_noise(x0, noise, timesteps), schedule.training_target(x0, noise, timesteps)
    seen = []

    def network(sample: Tensor, at: Tensor, conditioning: Conditioning) -> Tensor:
        seen.append((at.tolist(), len(conditioning)))
        return target[: len(sample)] if len(sample) <= 3 else torch.cat([target, target[-1:].expand(2, -1)])

    levels, rows = levels_of(schedule, 20, 600, 600), TOKENS.repeat(3)
    found = NetworkDenoiser(network, schedule, torch.float32)(noisy, levels, rows)
    padded = NetworkDenoiser(network, schedule, torch.float32, batch=5)(noisy, levels, rows)
    assert torch.allclose(found, x0, atol=1e-4) and torch.equal(found, padded)
    assert seen == [([20, 600, 600], 3), ([20, 600, 600, 600, 600], 5)]


def rows(*guidance: Guidance | None) -> list[Row]:
    """Rows whose prompt is the number 3 and whose negative prompt is the number 2."""
    schedule = Schedule(ScheduleConfig(prediction_type="sample"))
    state = SamplerState(plan(schedule, "ddim", 2), torch.zeros(1), torch.Generator())
    positive, negative = (number(value) for value in (3.0, 2.0))
    return [Row(state, (positive,), negative, g) if g else Row(state, (positive,)) for g in guidance]


def number(value: float, tokens: int = 1) -> PromptConditioning:
    return PromptConditioning.constant(Conditioning(torch.full((1, tokens, 1), float(value))))


def guided(rows: list[Row], latents: Tensor, *timesteps: int) -> tuple[Tensor, list[float]]:
    """x0 of a network that multiplies by the prompt's number, and the prompts it evaluated, in order."""
    schedule, evaluated = Schedule(ScheduleConfig(prediction_type="sample")), []

    def network(sample: Tensor, _: Tensor, conditioning: Conditioning) -> Tensor:
        evaluated.extend(conditioning.hidden[:, 0, 0].tolist())
        return sample * conditioning.hidden[:, :, 0]

    denoiser = GuidedDenoiser(NetworkDenoiser(network, schedule, torch.float32), rows)
    return denoiser(latents, levels_of(schedule, *timesteps)), evaluated


def test_guidance_extrapolates_from_one_batch() -> None:
    x = torch.randn(3, 2)
    found, evaluated = guided(rows(*[Guidance(5.0)] * 3), x, 7, 7, 7)
    assert torch.allclose(found, 2 * x + 5 * (3 * x - 2 * x))
    assert evaluated == [2, 2, 2, 3, 3, 3]


def test_each_row_has_its_own_guidance_and_the_evaluations_that_it_needs() -> None:
    some = rows(Guidance(5.0), None, Guidance(2.0), Guidance(4.0, low=200, high=800))
    found, evaluated = guided(some, torch.ones(4, 1), 7, 7, 7, 7)
    assert found[:, 0].tolist() == [7, 3, 4, 3]
    assert sorted(evaluated) == [2, 2, 3, 3, 3, 3]
    found, evaluated = guided(some, torch.ones(4, 1), 7, 7, 900, 500)
    assert found[:, 0].tolist() == [7, 3, 4, 6] and len(evaluated) == 7


def test_outside_the_interval_only_the_prompt_is_evaluated() -> None:
    one = rows(Guidance(5.0, low=200.0, high=800.0))
    assert [guided(one, torch.ones(1, 1), t)[0].item() for t in (199, 200, 800, 801)] == [3, 7, 7, 3]
    assert [len(guided(one, torch.ones(1, 1), t)[1]) for t in (199, 200)] == [1, 2]
    state = one[0].state
    assert [replace(one[0], state=replace(state, position=k)).evaluations for k in (0, 1)] == [2, 1]


def test_prompts_joined_by_and_add_their_differences_from_the_unconditional() -> None:
    state = rows(None)[0].state
    joined = (replace(number(3), weight=0.5), replace(number(5), weight=-1.0))
    some = [Row(state, joined, number(2), Guidance(4.0, low=200)), Row(state, (number(7),))]
    found, evaluated = guided(some, torch.ones(2, 1), 500, 500)
    assert found[:, 0].tolist() == [2 + 4 * (0.5 * 1 - 3), 7] and evaluated == [2, 7, 3, 5]
    found, _ = guided(some, torch.ones(2, 1), 100, 100)  # outside the interval, where the scale is 1
    assert found[:, 0].tolist() == [2 + 0.5 * 1 - 3, 7]


def test_a_prompt_changes_at_its_timesteps() -> None:
    one, two, three = (number(value).at(0) for value in (1, 2, 3))
    prompt = PromptConditioning(((float("inf"), one), (500.0, two), (100.0, three)))
    assert [prompt.at(t) for t in (999, 501, 500, 101, 100, 0)] == [one, one, two, two, three, three]
    row = Row(rows(None)[0].state, (prompt,))
    assert [guided([row], torch.ones(1, 1), t)[0].item() for t in (999, 500, 0)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("counts", "repeat", "groups"),
    [
        ([2, 2, 2], True, {2: [0, 1, 2]}),
        ([1, 3, 1, 2], True, {3: [0, 1, 2], 2: [3]}),
        ([1, 2, 4, 3], True, {4: [0, 1, 2], 3: [3]}),
        ([1, 2, 1], False, {2: [1], 1: [0, 2]}),
    ],
)
def test_token_counts_that_divide_another_share_its_batch(
    counts: list[int], repeat: bool, groups: dict[int, list[int]]
) -> None:
    assert token_groups(counts, repeat) == groups


@pytest.mark.parametrize("batch", [None, 4])
def test_rows_of_different_token_counts_keep_their_order(batch: int | None) -> None:
    state = rows(None)[0].state
    some = [Row(state, (number(value, tokens),)) for value, tokens in ((2, 1), (3, 3), (5, 2), (7, 1))]
    sizes = []

    def network(sample: Tensor, _: Tensor, conditioning: Conditioning) -> Tensor:
        sizes.append(conditioning.hidden.shape[:2])
        return sample * conditioning.hidden.mean(1)

    schedule = Schedule(ScheduleConfig(prediction_type="sample"))
    denoiser = GuidedDenoiser(NetworkDenoiser(network, schedule, torch.float32, batch), some)
    assert denoiser(torch.ones(4, 1), levels_of(schedule, 7, 7, 7, 7))[:, 0].tolist() == [2, 3, 5, 7]
    assert sizes == ([(4, 3), (4, 2), (4, 1)] if batch else [(3, 3), (1, 2)])


@pytest.mark.parametrize("keys", [{"thresholding": True, "sample_max_value": 2.0}, {"clip_sample": True}, {}])
def test_predictions_are_bounded_as_diffusers_bounds_them(keys: dict[str, Any]) -> None:
    x0 = 3 * torch.randn(4, 2, 5, 5)
    found = bounded(lambda *_: x0, ScheduleConfig(**keys))(x0, levels_of(Schedule(ScheduleConfig()), 7))
    if keys.get("thresholding"):
        wanted = diffusers.DDPMScheduler(**keys)._threshold_sample(x0)
    else:
        wanted = x0.clamp(-1, 1) if keys else x0
    assert torch.allclose(found, wanted, atol=1e-6)
