"""latentdiff: latent text-to-image diffusion in PyTorch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentdiff.pipeline import LatentDiffusionPipeline

__version__ = "0.1.0"
__all__ = ["LatentDiffusionPipeline", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the pipeline, and torch with it, on first access."""
    if name == "LatentDiffusionPipeline":
        from latentdiff.pipeline import LatentDiffusionPipeline

        return LatentDiffusionPipeline
    raise AttributeError(f"module 'latentdiff' has no attribute {name!r}")
