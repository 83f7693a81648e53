"""The import order: a module imports only from modules before it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "latentdiff"
ORDER = [
    "errors", "files", "device_transfer",
    "config", "models", "sampling", "text", "checkpoints", "denoiser", "images", "safety", "runtime",
    "vae_codec", "inputs", "image_to_image", "loaded_model", "pipeline", "refiner", "hires", "animation", "previews",
    "recipe", "data", "metrics", "training", "serving", "cli",
]  # fmt: skip
SLOW = {
    "transformers", "diffusers", "accelerate", "peft", "huggingface_hub", "datasets", "scipy", "pandas", "sympy",
    "torch._dynamo", "torch._inductor", "torch.distributed.tensor",
}  # fmt: skip
WITHIN = {  # the order inside a folder, where it has one
    "models": ["conditioning", "layers", "attention", "unet", "vae", "tile_norms", "tiled_vae", "esrgan"],
    "sampling": [
        "spacings", "schedule", "sampler_coefficients", "samplers", "denoising_range", "seeds", "inversion", "loop",
        "interpolation", "variations", "tiled_denoiser", "seamless", "probability_flow",
    ],
    "text": [
        "prompt_syntax", "prompt_schedule", "tokenizer", "chunks", "clip", "text_conditioner",
        "prompt_encoder", "wildcards",
    ],
    "inputs": [
        "model_limits", "prompts", "size_conditioning", "canvases", "diffusers_names", "normalise", "__init__",
    ],
}  # fmt: skip


def imported(path: Path) -> set[str]:
    """The modules of this package that a file imports, such as `models.attention`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("latentdiff."):
            names.add(node.module.removeprefix("latentdiff."))
        if isinstance(node, ast.Import):
            names |= {n.name.removeprefix("latentdiff.") for n in node.names if n.name.startswith("latentdiff.")}
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_upwards(path: Path) -> None:
    place = path.relative_to(PACKAGE).with_suffix("").parts
    if place[0] in ("__init__", "__main__"):
        return
    own = ORDER.index(place[0])
    for name in imported(path):
        part = name.split(".")[0]
        assert ORDER.index(part) <= own, f"{'/'.join(place)} imports {name}, which stands below it"
        if place[0] == part and part in WITHIN:
            assert WITHIN[part].index(name.split(".")[1]) < WITHIN[part].index(place[1])
        elif place[0] == part:
            assert len(place) > 1, f"{place[0]} imports itself"


def test_generate_imports_nothing_slow_except_torch(model_folder: Path, tmp_path: Path) -> None:
    words = ["latentdiff", "generate", "x", "-o", str(tmp_path / "x.png"), "--steps", "1", "--model", str(model_folder)]
    code = f"import sys; sys.argv = {words}\nfrom latentdiff.cli import main\n" + (
        f"try:\n    main()\nfinally:\n    print(*sorted({SLOW} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.split() == [str(tmp_path / "x.png")]


def test_the_test_can_fail(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from latentdiff.pipeline import y\n    import latentdiff.cli.app\n")
    assert imported(file) == {"pipeline", "cli.app"}
