"""What `optimize="auto"` changes: time, not pictures."""

from pathlib import Path

import numpy as np
import pytest

from latentdiff import LatentDiffusionPipeline
from latentdiff.errors import InputError


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1), ("bfloat16", 24)])
def test_pictures_stay_the_same(model_folder: Path, dtype: str, most: int) -> None:
    fast, plain = (
        LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype=dtype, optimize=optimize)
        for optimize in ("auto", "off")
    )
    first, second = (
        np.asarray(pipe("a cat face", num_inference_steps=4, seed=1).images[0]).astype(int) for pipe in (fast, plain)
    )
    assert np.abs(first - second).max() <= most


def test_a_word_that_is_none_of_them() -> None:
    with pytest.raises(InputError, match="optimize='atuo' is unknown; did you mean 'auto'"):
        LatentDiffusionPipeline.from_pretrained(optimize="atuo")  # type: ignore[arg-type]
