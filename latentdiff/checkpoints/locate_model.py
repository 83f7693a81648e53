"""Locate a model: bundled with the package, at a local path, or on the Hugging Face hub."""

import re
from pathlib import Path

from latentdiff.checkpoints.tensor_files import SUFFIXES
from latentdiff.errors import CheckpointError
from latentdiff.files import read_json

KINDS = ("json", "txt", "safetensors")
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
HUB_FILES = ["model_index.json", "generation_config.json", *(f"{part}/*.{kind}" for part in PARTS for kind in KINDS)]
VARIANT_FILES = ["*.fp16.*", "*.fp16-*", "*.non_ema.*", "*.non_ema-*"]  # skipped if the plain files exist
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def bundled_model() -> Path:
    """The folder of the bundled model, in an installed wheel or in a source checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "weights" / "emoji", package.parent / "weights" / "emoji"):
        if folder.is_dir():
            return folder
    raise CheckpointError(f"the bundled model is not at {package / 'weights' / 'emoji'}; reinstall latentdiff")


def locate(path_or_id: str | Path | None, variant: str | None = None) -> Path:
    """The local folder or file of a model: the bundled one for None, a path, or a hub id `owner/name[@revision]`.

    An existing path is used directly. A string is looked up on the hub only if it cannot be a local path: one that is
    absolute, starts with `.`, `~` or an existing folder, or ends like a weight file is reported as missing. Raises
    CheckpointError.
    """
    if path_or_id is None:
        return bundled_model()
    path = Path(path_or_id)
    try:
        if path.exists():
            return path
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(path)[:80]!r} cannot be a path ({error}); check it") from error
    if (problem := _not_an_id(str(path_or_id))) is not None:
        raise CheckpointError(f"{path_or_id} does not exist{problem}; give a model folder, file, or hub id owner/name")
    return download(str(path_or_id), variant)


def has_folder(*paths: str | Path | None) -> bool:
    """Whether one of these models or networks, which exist, is not a single file, but a folder or on the hub."""
    return any(path is not None and not Path(path).is_file() for path in paths)


def _not_an_id(text: str) -> str | None:
    """The reason why a string is considered a path; None if it can be a hub id."""
    if not HUB_ID.fullmatch(text):
        return ""
    first = text.split("/")[0]
    if Path(text).suffix in SUFFIXES:
        return " (a weight file, so the hub was not searched)"
    if Path(first).exists():
        return f" ({first} is a local folder, so the hub was not searched)"
    return None


def download(hub_id: str, variant: str | None = None) -> Path:
    """The snapshot of a hub model: from the cache, without network access, if it is complete; otherwise it is
    downloaded.

    Raises CheckpointError with the hub's reason.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = hub_id.partition("@")
    try:
        return _complete(Path(snapshot_download(name, revision=revision or None, local_files_only=True)), variant)
    except Exception:  # not in the cache, or not all of it
        pass
    try:
        ignored = VARIANT_FILES if variant is None else None
        options = {"revision": revision or None, "allow_patterns": HUB_FILES}
        folder = Path(snapshot_download(name, ignore_patterns=ignored, **options))
        if not any((folder / "unet").glob("*.safetensors")):
            folder = Path(snapshot_download(name, **options))
        return folder
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{hub_id} is neither a local folder nor an accessible Hugging Face repository ({reason}); check the name"
        ) from error


def _complete(folder: Path, variant: str | None) -> Path:
    """A cached snapshot with the files of all components in its index. Raises FileNotFoundError otherwise."""
    index = read_json(folder / "model_index.json")
    for part in PARTS:
        entry = index.get(part)
        if not isinstance(entry, list) or not all(entry):
            continue
        weights = part.startswith(("unet", "vae", "text_encoder"))
        pattern = f"*{variant or ''}*.safetensors" if weights else "*.*"
        if not any((folder / part).glob(pattern)):
            raise FileNotFoundError(folder / part)
    return folder
