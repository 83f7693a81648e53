"""The pictures of three pages: `python -m examples.editing.pictures docs/pictures`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from latentdiff import LatentDiffusionPipeline
from latentdiff.animation import animate
from latentdiff.images.sheet import labelled_grid

QUALITY = 90  # of WebP files


def image_to_image(pipe: LatentDiffusionPipeline, seed: int) -> Image.Image:
    apple = pipe("a red apple", seed=seed).images[0]
    strengths = (0.3, 0.5, 0.7, 0.9)
    edited = [pipe("a green apple", image=apple, strength=strength, seed=seed).images[0] for strength in strengths]
    return labelled_grid([[apple, *edited]], ["--image", *(f"--strength {strength}" for strength in strengths)], [])


def inversion(pipe: LatentDiffusionPipeline, seed: int) -> Image.Image:
    apple = pipe("a red apple", seed=seed).images[0]
    call: dict[str, Any] = {"image": apple, "num_inference_steps": 50, "seed": seed}
    plain = pipe("a green apple", strength=0.8, **call).images[0]
    found = [
        pipe(prompt, source_prompt="a red apple", strength=0.8, **call).images[0]
        for prompt in ("a green apple", "an orange")
    ]
    labels = ["a red apple", "a green apple", "a green apple, inverted", "an orange, inverted"]
    return labelled_grid([[apple, plain, *found]], labels, [])


def inpainting(pipe: LatentDiffusionPipeline, seed: int) -> Image.Image:
    cat = pipe("a cat face, noto style", seed=7).images[0]
    mask = Image.new("L", cat.size)
    mask.paste(255, (0, 0, cat.width, cat.height // 2))
    done = pipe("a dog face, noto style", image=cat, mask_image=mask, seed=seed).images[0]
    return labelled_grid([[cat, mask.convert("RGB"), done]], ["--image", "--mask", "a dog face, noto style"], [])


def seamless(pipe: LatentDiffusionPipeline, seed: int) -> Image.Image:
    tile = pipe("a pizza, noto style", seamless="x,y", seed=seed).images[0]
    plain = pipe("a pizza, noto style", seed=seed).images[0]
    return labelled_grid([[_four(plain), _four(tile)]], ["four times", "--seamless x,y, four times"], [])


def _four(image: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (2 * image.width, 2 * image.height))
    for k in range(4):
        sheet.paste(image, (k % 2 * image.width, k // 2 * image.height))
    return sheet


def prompts(pipe: LatentDiffusionPipeline, seed: int) -> Image.Image:
    texts = ["a cat face", "a dog face", "[a cat face:a dog face:0.4]", "[a cat face|a dog face]"]
    texts = [f"{text}, noto style" for text in texts] + ["a cat face, noto style AND a dog face, noto style"]
    labels = ["a cat face", "a dog face", "[cat:dog:0.4]", "[cat|dog]", "cat AND dog"]
    return labelled_grid([[pipe(text, seed=seed).images[0] for text in texts]], labels, [])


def animation(pipe: LatentDiffusionPipeline, folder: Path) -> None:
    prompts = ["a red apple", "an orange", "a pizza", "a red apple"]
    frames = [image for _, image in animate(pipe, prompts, [7, 8, 9, 7], frames=12, sampler="ddim")]
    frames[0].save(
        folder / "animation.webp", save_all=True, append_images=frames[1:-1], duration=83, loop=0, quality=80
    )


SHEETS: dict[str, Callable[[LatentDiffusionPipeline, int], Image.Image]] = {
    "image_to_image": image_to_image, "inversion": inversion, "inpainting": inpainting,
    "seamless": seamless, "prompts": prompts,
}  # fmt: skip
SEEDS = {
    "image_to_image": 7,
    "inversion": 3,
    "inpainting": 1,
    "seamless": 1,
    "prompts": 3,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(exist_ok=True)
    pipe = LatentDiffusionPipeline.from_pretrained()
    for name, sheet in SHEETS.items():
        sheet(pipe, SEEDS[name]).save(folder / f"{name}.webp", quality=QUALITY)
    animation(pipe, folder)


if __name__ == "__main__":
    main()
