"""Generate pictures for prompts, and compare the model's text encoder with that of a judge."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from examples.emoji.pairs import AT_ONCE, Prompt
from latentdiff.metrics.clip import Clip
from latentdiff.pipeline import LatentDiffusionPipeline

RELATED = 0.5  # cosine of two sets of weights; unrelated ones have about 0


@dataclass(frozen=True)
class Settings:
    """Sampling settings, with the names of the pipeline's arguments."""

    num_inference_steps: int
    guidance_scale: float
    sampler: str = "ddim"
    eta: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add --steps, --guidance-scale and --sampler, which default to the model's settings."""
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--sampler")


def settings_of(pipe: LatentDiffusionPipeline, given: argparse.Namespace) -> Settings:
    """The options of `add_settings`, with the model's settings for those not given."""
    asked = pipe.generation.with_given(
        num_inference_steps=given.steps, guidance_scale=given.guidance_scale, sampler=given.sampler
    )
    return Settings(**asked.model_dump())


def draw(pipe: LatentDiffusionPipeline, prompts: Sequence[Prompt], settings: Settings) -> Iterator[Tensor]:
    """Generate batches of uint8 [B, 3, R, R], in the order of the prompts."""
    for k in tqdm(range(0, len(prompts), AT_ONCE), desc="drawn, in batches", disable=None, leave=False):
        part = prompts[k : k + AT_ONCE]
        made = pipe(
            [prompt.text for prompt in part], seed=[prompt.seed for prompt in part], output_type="pt", **vars(settings)
        )
        yield (made.images.cpu() * 255).round().to(torch.uint8)


def weight_similarity(clip: Clip, pipe: LatentDiffusionPipeline) -> float:
    """Cosine between the weights of the judge's and of the model's text encoder: about 0 if unrelated."""
    ours, theirs = (_matrices(model) for model in (pipe.text.encoders[0], clip.model.text_model))
    if {key: value.shape for key, value in ours.items()} != {key: value.shape for key, value in theirs.items()}:
        return 0.0
    first, second = (torch.cat([part[key].flatten() for key in ours]) for part in (ours, theirs))
    return float(torch.cosine_similarity(first, second, dim=0))


def _matrices(model: nn.Module) -> dict[str, Tensor]:
    state = {key.removeprefix("text_model."): value for key, value in model.state_dict().items()}
    return {key: value.double().cpu() for key, value in state.items() if value.ndim == 2 and "ids" not in key}


def judge_bias(clip: Clip | None, pipe: LatentDiffusionPipeline) -> str:
    """Whether the CLIP judge, if there is one, is biased towards the model, as a sentence without its full stop."""
    if clip is None:
        return "There was no CLIP judge (`--judge`), so no picture is compared with a text"
    similarity = weight_similarity(clip, pipe)
    if similarity < RELATED:
        return f"The text encoders of `clip` and of the model are unrelated (cosine of the weights {similarity:.2f})"
    return (
        "`clip` is biased, because the model's text encoder was initialised from the text encoder of this CLIP model "
        f"(cosine of the weights {similarity:.2f}). `centroid` is not: it uses features trained on photographs, and "
        "the training pictures"
    )
