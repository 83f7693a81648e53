"""The pipeline against that of diffusers from the same folder, and its documented guarantees."""

import json
import shutil
import socket
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from latentdiff import LatentDiffusionPipeline
from latentdiff.checkpoints.folder import GENERATION
from latentdiff.checkpoints.locate_model import bundled_model
from latentdiff.config.generation import GenerationConfig
from latentdiff.denoiser import Row
from latentdiff.errors import CheckpointError, InputError, NonFiniteError
from latentdiff.inputs import read_inputs
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.sampling.loop import StepInfo
from latentdiff.sampling.seeds import generator_for
from tests.small import small_components, small_unet_config

PROMPT = "a red apple"


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> LatentDiffusionPipeline:
    return LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")


def as_bytes(image: object) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("folder", ["model_folder", "xl_folder"])
@pytest.mark.parametrize("negative", [None, "wrong colours"])
def test_image_equals_diffusers(folder: str, negative: str | None, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(folder)
    ours = LatentDiffusionPipeline.from_pretrained(path, device="cpu", dtype="float32")
    xl = folder == "xl_folder"
    theirs = (diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline).from_pretrained(path)
    theirs.set_progress_bar_config(disable=True)
    latents = torch.randn(2, 4, 8, 8)
    settings = {"num_inference_steps": 20, "guidance_scale": 5.0, "latents": latents, "height": 16, "width": 16}
    mine = ours([PROMPT, "猫"], negative_prompt=negative, **settings).images
    negatives = None if negative is None else [negative] * 2
    reference = theirs([PROMPT, "猫"], negative_prompt=negatives, **settings).images
    assert as_bytes(reference[0]).std() > 1
    for a, b in zip(mine, reference, strict=True):
        assert np.abs(as_bytes(a) - as_bytes(b)).max() <= 1


def test_bundled_model_equals_diffusers() -> None:
    """Velocity prediction, cosine schedule, zero terminal SNR, trailing steps, at the model's own size."""
    ours = LatentDiffusionPipeline.from_pretrained(device="cpu", dtype="float32")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(bundled_model(), torch_dtype=torch.float32)
    latents = torch.randn(1, ours.denoiser.config.in_channels, 16, 16)
    settings = {"num_inference_steps": 20, "guidance_scale": 5.0, "latents": latents, "height": 128, "width": 128}
    mine = as_bytes(ours(PROMPT, sampler="ddim", **settings).images[0])
    reference = as_bytes(theirs(PROMPT, **settings).images[0])
    assert np.abs(mine - reference).max() <= 1


def test_an_image_of_a_batch_equals_it_alone(pipe: LatentDiffusionPipeline) -> None:
    together = pipe(
        [PROMPT, "猫"], num_images_per_prompt=2, seed=3, num_inference_steps=4, eta=1.0, output_type="latent"
    )
    assert together.seeds == [3, 4, 5, 6]
    alone = pipe("猫", seed=5, num_inference_steps=4, eta=1.0, output_type="latent").images
    assert (together.images[2:3] - alone).abs().max() < 1e-5 * alone.abs().max()
    assert not torch.allclose(together.images[2], together.images[3], atol=1e-2)


def test_the_same_call_gives_the_same_bits(pipe: LatentDiffusionPipeline) -> None:
    first, second = (pipe(PROMPT, seed=1, num_inference_steps=3, output_type="np").images for _ in range(2))
    assert np.array_equal(first, second)


def test_threads_do_not_disturb_each_other(pipe: LatentDiffusionPipeline) -> None:
    expected = [pipe(PROMPT, seed=s, num_inference_steps=5, eta=0.5, output_type="np").images for s in range(4)]
    results: dict[int, np.ndarray] = {}

    def work(seed: int) -> None:
        results[seed] = pipe(PROMPT, seed=seed, num_inference_steps=5, eta=0.5, output_type="np").images

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        assert np.allclose(results[seed], expected[seed], atol=1e-6)


@pytest.mark.parametrize("folder", ["model_folder", "xl_folder"])
def test_saving_and_opening_changes_nothing(folder: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    first = LatentDiffusionPipeline.from_pretrained(request.getfixturevalue(folder), device="cpu", dtype="float32")
    first.save_pretrained(tmp_path / "again")
    second = LatentDiffusionPipeline.from_pretrained(tmp_path / "again", device="cpu", dtype="float32")
    images = [p(PROMPT, seed=0, num_inference_steps=3, output_type="np").images for p in (first, second)]
    assert np.array_equal(*images)
    with pytest.raises(InputError, match="exists"):
        first.save_pretrained(tmp_path / "again")


def test_a_model_stores_its_default_sampling_settings(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    own = {"num_inference_steps": 3, "guidance_scale": 2.0, "sampler": "euler_ancestral"}
    (folder / GENERATION).write_text(json.dumps(own))
    pipe = LatentDiffusionPipeline.from_pretrained(folder, device="cpu", dtype="float32")
    plain = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")
    of = partial(pipe, PROMPT, seed=0, output_type="np")
    expected = plain(PROMPT, seed=0, output_type="np", **own).images  # type: ignore[arg-type]
    assert np.array_equal(of().images, expected)
    assert not np.array_equal(of(guidance_scale=3.0).images, expected)
    pipe.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / GENERATION).read_text()) == own
    assert not (model_folder / GENERATION).exists()
    (folder / GENERATION).write_text('{"num_inference_steps": 0}')
    wrong = {
        '{"num_inference_steps": 0}': f"{GENERATION}: num_inference_steps=0",
        '{"sampler": "dppm"}': f"{GENERATION}: sampler='dppm' is unknown; did you mean",
        "[]": f"{GENERATION} contains list instead of keys and values",
    }
    for text, message in wrong.items():
        (folder / GENERATION).write_text(text)
        with pytest.raises(CheckpointError, match=message):
            LatentDiffusionPipeline.from_pretrained(folder)
    (folder / GENERATION).write_text('{"sampler": null, "top_p": 1}')
    assert LatentDiffusionPipeline.from_pretrained(folder).generation == GenerationConfig()


def test_a_local_path_does_not_open_a_socket(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")(PROMPT, num_inference_steps=1)


def test_nan_and_infinity_are_located(model_folder: Path) -> None:
    broken = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")
    broken.denoiser.conv_out.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="latents are not finite from step 1 of 3"):
        broken(PROMPT, num_inference_steps=3)
    broken = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")
    broken.vae.decoder.conv_out.bias.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match="VAE"):
        broken(PROMPT, num_inference_steps=3)


def test_callback_and_output_types(pipe: LatentDiffusionPipeline) -> None:
    seen: list[tuple[int, int]] = []
    settings = {"seed": 0, "num_inference_steps": 3, "height": 24, "width": 16}
    image = pipe(PROMPT, callback=lambda info: seen.append((info.step, info.steps)), **settings).images[0]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert image.size == (16, 24)
    assert pipe(PROMPT, output_type="np", **settings).images.shape == (1, 24, 16, 3)
    assert pipe(PROMPT, output_type="pt", **settings).images.shape == (1, 3, 24, 16)
    assert pipe(PROMPT, output_type="latent", **settings).images.shape == (1, 4, 12, 8)


def test_a_prompt_over_the_token_limit_names_the_lost_words(pipe: LatentDiffusionPipeline) -> None:
    with pytest.warns(UserWarning, match="red apple"):
        pipe("a cat face " * 5 + "a red apple", num_inference_steps=1, prompt_syntax="plain")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": []}, r"prompt=\[\] is empty"),
        ({"prompt": [1]}, "contains 1, which is not a string"),
        ({"height": 15}, "height=15 must be a multiple of 2; try 14 or 16"),
        ({"sampler": "eulr"}, "did you mean 'euler'"),
        ({"num_inference_steps": 0}, r"num_inference_steps=0 \(--steps\) must be from 1 to 1000"),
        ({"num_inference_steps": 1001}, r"num_inference_steps=1001 \(--steps\) must be from 1 to 1000"),
        ({"eta": 0.5, "sampler": "euler"}, "only used by sampler='ddim'"),
        ({"num_images_per_prompt": 0}, "at least 1"),
        ({"seed": -1}, "seed=-1 must be from 0 to"),
        ({"seed": 1.5}, "seed=1.5 must be a whole number"),
        ({"seed": "1"}, "seed='1' must be a whole number"),
        ({"seed": [1, 2]}, "seed has 2 numbers for 1 images"),
        ({"num_inference_steps": 2.5}, "num_inference_steps=2.5 must be a whole number"),
        ({"height": 16.5}, "height=16.5 must be a whole number"),
        ({"guidance_scale": "5"}, "guidance_scale='5' must be a number"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan must be a finite number"),
        ({"guidance_scale": float("inf")}, "guidance_scale=inf must be a finite number"),
        ({"guidance_interval": (0.2,)}, "must be two numbers; try"),
        ({"guidance_interval": ("0", 1)}, "guidance_interval='0' must be a number"),
        ({"eta": "0.5", "sampler": "ddim"}, "eta='0.5' must be a number"),
        ({"eta": None, "sampler": "ddim"}, "eta=None must be a number"),
        ({"variation_strength": [0.5], "variation_seed": 3}, r"variation_strength=\[0.5\] must be a number"),
        ({"denoising_end": "0.5"}, "denoising_end='0.5' must be a number"),
        ({"strength": True, "image": np.zeros((16, 16, 3), np.uint8)}, "strength=True must be a number"),
        ({"prompt": "a \ud800"}, "half a surrogate pair"),
        ({"negative_prompt": ["a", "b"]}, "2 texts for 1 prompts"),
        ({"latents": torch.zeros(1, 4, 4, 4)}, r"shape \[1, 4, 4, 4\], which must be"),
        ({"output_type": "pli"}, "did you mean 'pil'"),
    ],
)
def test_invalid_arguments_are_errors(pipe: LatentDiffusionPipeline, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipe(**({"prompt": PROMPT, "num_inference_steps": 2} | change))


def test_a_network_that_reads_other_channels_is_refused() -> None:
    parts = small_components()
    unet = UNet2DConditionModel(small_unet_config(in_channels=7))
    with pytest.raises(CheckpointError, match="reads 7 channels and predicts 4"):
        LatentDiffusionPipeline(replace(parts, denoiser=unet), torch.device("cpu"), torch.float32)


def test_the_default_seed_is_random_and_reported(pipe: LatentDiffusionPipeline) -> None:
    first, second = (pipe(PROMPT, num_inference_steps=1) for _ in range(2))
    assert first.seeds != second.seeds
    again = pipe(PROMPT, num_inference_steps=1, seed=first.seeds[0])
    assert np.array_equal(as_bytes(first.images[0]), as_bytes(again.images[0]))


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_nan_guidance_is_an_error_before_the_first_step(scale: float, pipe: LatentDiffusionPipeline) -> None:
    with pytest.raises(InputError, match=f"guidance_scale={scale} must be a finite number; try"):
        pipe("a red apple", guidance_scale=scale, callback=lambda _: pytest.fail("a step was made"))


def test_an_empty_guidance_interval_disables_guidance(pipe: LatentDiffusionPipeline) -> None:
    call = partial(pipe, PROMPT, num_inference_steps=3, seed=1, output_type="latent")
    unguided, never, always = call(guidance_scale=1.0), call(guidance_interval=(1, 1)), call()
    assert torch.allclose(never.images, unguided.images, atol=1e-5)
    assert not torch.allclose(always.images, unguided.images, atol=1e-2)


@pytest.mark.parametrize("interval", [(0.8, 0.2), (-0.1, 1.0), (0.0, 1.5), (float("nan"), 1.0)])
def test_an_invalid_interval_is_an_error(interval: tuple[float, float], pipe: LatentDiffusionPipeline) -> None:
    with pytest.raises(InputError, match=r"guidance_interval=.* must increase within 0 and 1; try"):
        pipe(PROMPT, guidance_interval=interval)


def rows_of(pipe: LatentDiffusionPipeline, prompt: str, **settings: Any) -> list[Row]:
    return pipe.start(read_inputs(pipe.limits, prompt, **settings))


JOBS: list[dict[str, Any]] = [
    {"prompt": PROMPT, "seed": 1, "num_inference_steps": 3, "sampler": "ddim", "guidance_scale": 4.0},
    {"prompt": "猫", "seed": 2, "num_inference_steps": 5, "sampler": "dpmpp_2m_sde", "guidance_scale": 1.0},
    {"prompt": "a cat face", "seed": 3, "num_inference_steps": 4, "sampler": "heun", "guidance_interval": (0.3, 1.0)},
    {"prompt": "a [red|cat] face, " * 4 + "AND 猫 :0.5", "seed": 4, "num_inference_steps": 3},
]


@pytest.mark.parametrize("folder", ["model_folder", "xl_folder"])
@pytest.mark.parametrize(("dtype", "optimize"), [("float32", "off"), ("float32", "auto"), ("bfloat16", "auto")])
def test_rows_that_join_at_different_times_give_the_bits_that_each_gives_alone(
    folder: str, dtype: str, optimize: str, request: pytest.FixtureRequest
) -> None:
    """Rows are independent of the samplers, step counts, prompts and guidance of other rows at a padded batch size."""
    pipe = LatentDiffusionPipeline.from_pretrained(request.getfixturevalue(folder), "cpu", dtype, optimize)
    alone = []
    for job in JOBS:
        (row,) = rows_of(pipe, **job)
        while not row.state.finished:
            (row,), _ = pipe.step([row], batch=8)
        alone.append(row.state.latents)
    running: dict[int, Row] = {}
    finished: dict[int, torch.Tensor] = {}
    for turn in range(12):
        if turn < len(JOBS):
            (running[turn],) = rows_of(pipe, **JOBS[turn])
        if running:
            stepped, x0 = pipe.step(list(running.values()), batch=8)
            assert len(x0) == len(stepped)
            running = dict(zip(running, stepped, strict=True))
        finished |= {k: row.state.latents for k, row in running.items() if row.state.finished}
        running = {k: row for k, row in running.items() if not row.state.finished}
    assert sorted(finished) == list(range(len(JOBS)))
    for k, wanted in enumerate(alone):
        assert torch.equal(finished[k], wanted), JOBS[k]


def test_rows_of_another_model_or_size_are_refused(pipe: LatentDiffusionPipeline) -> None:
    (row,), (larger,) = rows_of(pipe, PROMPT), rows_of(pipe, PROMPT, height=32)
    with pytest.raises(InputError, match="cannot share a batch"):
        pipe.step([row, larger])
    other = replace(row, state=replace(row.state, latents=torch.zeros(8, 8, 8)))
    with pytest.raises(InputError, match="a row has 8 latent channels and this model 4; use the pipeline that made it"):
        pipe.step([other])


def test_a_callback_receives_x0_and_can_stop_sampling(pipe: LatentDiffusionPipeline) -> None:
    seen: list[StepInfo] = []

    def stop_at_two(info: StepInfo) -> bool:
        seen.append(info)
        return info.step == 2

    output = pipe(PROMPT, num_inference_steps=4, seed=1, callback=stop_at_two, output_type="latent")
    assert output.stopped and [info.step for info in seen] == [1, 2]
    assert torch.equal(output.images, seen[-1].x0) and seen[-1].latents.shape == seen[-1].x0.shape == (1, 4, 8, 8)
    assert not pipe(PROMPT, num_inference_steps=1).stopped


def test_a_callback_that_raises_ends_the_run_and_leaves_the_pipeline_usable(pipe: LatentDiffusionPipeline) -> None:
    class MyError(Exception):
        pass

    def fail(_: StepInfo) -> None:
        raise MyError

    before = pipe(PROMPT, num_inference_steps=2, seed=1, output_type="np").images
    with pytest.raises(MyError):
        pipe(PROMPT, num_inference_steps=2, callback=fail)
    assert np.array_equal(pipe(PROMPT, num_inference_steps=2, seed=1, output_type="np").images, before)


def test_integers_of_any_type_are_accepted(pipe: LatentDiffusionPipeline) -> None:
    call = partial(pipe, PROMPT, output_type="latent")
    wanted = call(seed=3, num_inference_steps=2, height=16).images
    given = {"seed": np.int64(3), "num_inference_steps": 2.0, "height": torch.tensor(16)}
    assert torch.equal(call(**given).images, wanted)  # type: ignore[arg-type]
    assert torch.equal(call(seed=np.array([3]), num_inference_steps=2, height=16).images, wanted)


def test_every_seed_gives_a_different_image(pipe: LatentDiffusionPipeline) -> None:
    """torch uses 32 bits of the seed of a CPU generator."""
    seeds = [1, 2**32 + 1, 2**40 + 1, 2**63 - 1]
    noise = torch.stack([torch.randn(4096, generator=generator_for(seed)) for seed in seeds])
    assert torch.equal(noise[0], torch.randn(4096, generator=torch.Generator().manual_seed(1)))
    assert (torch.corrcoef(noise) - torch.eye(4)).abs().max() < 0.06
    assert noise.std(1).sub(1).abs().max() < 0.05 and noise.mean(1).abs().max() < 0.06
    assert torch.equal(noise[3], torch.randn(4096, generator=generator_for(seeds[3])))
    assert pipe(PROMPT, seed=2**63 - 1, num_inference_steps=1).seeds == [2**63 - 1]


def test_seeds_are_returned_where_anything_was_drawn(pipe: LatentDiffusionPipeline) -> None:
    given = {"latents": torch.randn(1, 4, 8, 8), "num_inference_steps": 2, "seed": 5}
    assert pipe(PROMPT, sampler="ddpm", **given).seeds == [5]  # type: ignore[arg-type]
    assert pipe(PROMPT, sampler="ddim", **given).seeds == []  # type: ignore[arg-type]


def test_a_guidance_scale_of_one_or_less_disables_guidance(pipe: LatentDiffusionPipeline) -> None:
    call = partial(pipe, PROMPT, num_inference_steps=2, seed=1, output_type="latent")
    assert torch.equal(call(guidance_scale=0.0).images, call(guidance_scale=1.0).images)


def test_the_embedding_of_a_prompt_does_not_depend_on_earlier_prompts(model_folder: Path) -> None:
    first, second = (LatentDiffusionPipeline.from_pretrained(model_folder, "cpu", "float32") for _ in range(2))
    first("a cat face", num_inference_steps=1)
    together = first([PROMPT, "猫"], seed=1, num_inference_steps=2, output_type="latent").images
    assert torch.equal(together, second([PROMPT, "猫"], seed=1, num_inference_steps=2, output_type="latent").images)


def test_the_runtime_report_counts_replaced_layers_and_says_why_others_were_not(model_folder: Path) -> None:
    fast, plain = (LatentDiffusionPipeline.from_pretrained(model_folder, "cpu", "float32", o) for o in ("auto", "off"))
    lines = fast.runtime_report()
    assert lines[0] == "optimize=auto, device=cpu, dtype=torch.float32"
    assert any(line.startswith("denoiser: Attention -> FusedAttention: 8 of 8") for line in lines)
    assert "denoiser: Attention -> FusedAttention: 0 of 8; 8 not: not prepared" in plain.runtime_report()
