"""The pictures of three pages: `python -m examples.editing.pictures docs/pictures`.

They are those of docs/edit.md, docs/animate.md and docs/prompts.md; all use one seed, and none is selected.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from latentdiff import LatentDiffusionPipeline
from latentdiff.animation import animate
from latentdiff.hires import Hires, generate_hires
from latentdiff.images.edit import EditOptions
from latentdiff.images.sheet import labelled_grid

SEED = 7
QUALITY = 90  # of WebP files
CAT = "a cat face, noto style"


def one(pipe: LatentDiffusionPipeline, prompt: str, **arguments: Any) -> Image.Image:
    """One image of the seed."""
    image: Image.Image = pipe(prompt, **{"seed": SEED} | arguments).images[0]
    return image


def image_to_image(pipe: LatentDiffusionPipeline) -> Image.Image:
    apple = one(pipe, "a red apple")
    strengths = (0.3, 0.5, 0.7, 0.9)
    edited = [one(pipe, "a green apple", image=apple, strength=strength) for strength in strengths]
    return labelled_grid([[apple, *edited]], ["--image", *(f"--strength {strength}" for strength in strengths)], [])


def inversion(pipe: LatentDiffusionPipeline) -> Image.Image:
    apple = one(pipe, "a red apple")
    edit = partial(one, pipe, image=apple, strength=0.8, num_inference_steps=50)
    images = [
        apple,
        edit("a green apple"),
        edit("a green apple", source_prompt="a red apple"),
        edit("an orange", source_prompt="a red apple"),
    ]
    return labelled_grid(
        [images], ["a red apple", "a green apple", "a green apple, inverted", "an orange, inverted"], []
    )


def variations(pipe: LatentDiffusionPipeline) -> Image.Image:
    strengths = (0.2, 0.5)
    rows = [
        [one(pipe, CAT, sampler="ddim", variation_strength=strength, variation_seed=k) for k in range(1, 5)]
        for strength in strengths
    ]
    cat = one(pipe, CAT, sampler="ddim")
    columns = [f"--seed {SEED}", *(f"--variation-seed {k}" for k in range(1, 5))]
    labels = [f"--variation-strength {strength}" for strength in strengths]
    return labelled_grid([[cat, *row] for row in rows], columns, labels)


def inpainting(pipe: LatentDiffusionPipeline) -> Image.Image:
    cat = one(pipe, CAT)
    mask = Image.new("L", cat.size)
    mask.paste(255, (0, 0, cat.width, cat.height // 2))
    done = one(pipe, "a dog face, noto style", image=cat, mask_image=mask)
    return labelled_grid([[cat, mask.convert("RGB"), done]], ["--image", "--mask", "a dog face, noto style"], [])


def outpainting(pipe: LatentDiffusionPipeline) -> Image.Image:
    cat = one(pipe, CAT)
    wide = one(pipe, "three cat faces, noto style", image=cat, edit=EditOptions(extend={"left": 64, "right": 64}))
    return labelled_grid([[cat, wide]], ["--image", "--extend left=64,right=64"], [])


def hires(pipe: LatentDiffusionPipeline) -> Image.Image:
    cat = one(pipe, CAT)
    strengths = (0.1, 0.3, 0.6)
    passes = [generate_hires(pipe, Hires(2, strength), prompt=CAT, seed=SEED).images[0] for strength in strengths]
    lanczos = cat.resize(passes[0].size, Image.Resampling.LANCZOS)
    labels = ["Lanczos alone", *(f"--hires-strength {strength}" for strength in strengths)]
    return labelled_grid([[lanczos, *passes]], labels, [])


def grid(pipe: LatentDiffusionPipeline) -> Image.Image:
    steps, samplers = (5, 10, 20), ("ddim", "dpmpp_2m")
    rows = [
        [one(pipe, "a red apple", num_inference_steps=count, sampler=sampler) for count in steps]
        for sampler in samplers
    ]
    columns, labels = [f"steps={count}" for count in steps], [f"sampler={sampler}" for sampler in samplers]
    return labelled_grid(rows, columns, labels, "a red apple")


def seamless(pipe: LatentDiffusionPipeline) -> Image.Image:
    tile, plain = (one(pipe, "a pizza, noto style", seamless=axes) for axes in ("x,y", None))
    return labelled_grid([[_four(plain), _four(tile)]], ["four times", "--seamless x,y, four times"], [])


def _four(image: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (2 * image.width, 2 * image.height))
    for k in range(4):
        sheet.paste(image, (k % 2 * image.width, k // 2 * image.height))
    return sheet


def prompts(pipe: LatentDiffusionPipeline) -> Image.Image:
    texts = ["a cat face", "a dog face", "[a cat face:a dog face:0.4]", "[a cat face|a dog face]"]
    texts = [f"{text}, noto style" for text in texts] + ["a cat face, noto style AND a dog face, noto style"]
    labels = ["a cat face", "a dog face", "[cat:dog:0.4]", "[cat|dog]", "cat AND dog"]
    return labelled_grid([[one(pipe, text) for text in texts]], labels, [])


def animation(pipe: LatentDiffusionPipeline, folder: Path) -> None:
    texts, seeds = ["a red apple", "an orange", "a pizza", "a red apple"], [SEED, SEED + 1, SEED + 2, SEED]
    frames = [image for _, image in animate(pipe, texts, seeds, frames=12, sampler="ddim")]
    frames[0].save(
        folder / "animation.webp", save_all=True, append_images=frames[1:-1], duration=83, loop=0, quality=80
    )


SHEETS: dict[str, Callable[[LatentDiffusionPipeline], Image.Image]] = {
    "image_to_image": image_to_image, "inversion": inversion, "variations": variations, "inpainting": inpainting,
    "outpainting": outpainting, "hires": hires, "grid": grid, "seamless": seamless, "prompts": prompts,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(exist_ok=True)
    pipe = LatentDiffusionPipeline.from_pretrained()
    for name, sheet in SHEETS.items():
        sheet(pipe).save(folder / f"{name}.webp", quality=QUALITY)
    animation(pipe, folder)


if __name__ == "__main__":
    main()
