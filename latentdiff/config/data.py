"""Schema of the settings of a dataset: its pictures and captions, and how they are prepared."""

from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, Self

from PIL import ImageColor
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, TypeAdapter, model_validator

from latentdiff.config.base import Config, refuse_given, validate
from latentdiff.errors import InputError

Probability = Annotated[float, Field(ge=0, le=1)]
CLASS_NAME = "{name}"


def check_template(template: str) -> str:
    """Return `template`. Raises InputError unless `{name}` is its only placeholder."""
    try:
        fields = {field[1:] for field in Formatter().parse(template) if field[1] is not None}
    except ValueError as error:
        raise InputError(f"caption_template={template!r}: {error}; write {{{{ or }}}} for a literal brace") from error
    if fields != {("name", "", None)}:
        raise InputError(
            f"caption_template={template!r} must contain {{name}} and no other placeholder; try 'a photo of a {{name}}'"
        )
    return template


def check_colour(colour: str) -> str:
    """Return `colour`. Raises InputError unless it is a name or a code that Pillow supports."""
    try:
        ImageColor.getrgb(colour)
    except ValueError as error:
        raise InputError(f"background={colour!r} is not a colour; try 'black' or '#808080'") from error
    return colour


class DataConfig(Config):
    """Captioned pictures for training and evaluation; docs/data.md describes all settings.

    train, held_out: a folder, zip or tar, shards by a pattern (`{000..012}.tar`) or https://, a parquet file, or a
        Hugging Face dataset (`hf://owner/name`, or one saved to disk). Without `held_out`, every 20th picture of
        `train` is held out if it has at least 20.
    resolution: side of the square in pixels. allow_upscale: the largest factor a picture may be enlarged by.
        max_crop: the largest share of its area that may be cropped.
    keep: for each named column, the values to train on. skip: names of pictures to exclude.
    caption_template: turns the `{name}` of a class into a caption. prefix: precedes every caption, and is the caption
        of pictures without one. tag_dropout: the probability of dropping each comma-separated part of a caption.
    background: the colour behind transparent pictures.
    """

    train: str | Path
    held_out: str | Path | None = None
    resolution: PositiveInt = 128
    batch_size: PositiveInt = 64
    num_workers: NonNegativeInt = 0
    flip: Probability = 0.0
    buckets: bool = True
    max_crop: Probability = 0.1
    allow_upscale: Annotated[float, Field(ge=1)] = 1.05
    crop: Literal["center", "random"] = "center"
    shuffle_captions: bool = False
    tag_dropout: Probability = 0.0
    keep: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    skip: tuple[str, ...] = ()
    caption_template: Annotated[str, AfterValidator(check_template)] = CLASS_NAME
    prefix: str = ""
    background: Annotated[str, AfterValidator(check_colour)] = "white"

    @model_validator(mode="after")
    def _max_crop_is_that_of_buckets(self) -> Self:
        if not self.buckets:
            refuse_given(self, ["max_crop"], "with buckets: false")
        return self


def data_config(**values: Any) -> DataConfig:
    """Validate data settings given as command-line options. Raises InputError."""
    config: DataConfig = validate(TypeAdapter(dict[str, DataConfig]), {"data": values}, "pictures")["data"]
    return config
