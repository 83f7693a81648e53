"""Which models can be fine-tuned."""

from dataclasses import replace
from pathlib import Path

import pytest

from latentdiff.checkpoints.components import write_pipeline
from latentdiff.checkpoints.model_source import OpenOptions
from latentdiff.errors import InputError
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.training.build_task import open_base_model
from tests.small import small_components, small_unet_config, write_small_refiner


def test_models_that_read_more_than_text_are_refused_by_name(model_folder: Path, tmp_path: Path) -> None:
    inpainting = UNet2DConditionModel(small_unet_config(in_channels=9))
    write_pipeline(replace(small_components(), denoiser=inpainting), tmp_path / "inpainting")
    write_small_refiner(tmp_path / "refiner")
    for folder, message in (
        (tmp_path / "inpainting", "has in_channels=9 .inpainting or editing"),
        (tmp_path / "refiner", "is a refiner of SDXL; fine-tuning is for text-to-image models"),
    ):
        with pytest.raises(InputError, match=message):
            open_base_model(str(folder), OpenOptions())
    assert open_base_model(str(model_folder), OpenOptions()).path == model_folder
