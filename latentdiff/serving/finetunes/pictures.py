"""The pictures and captions of a fine-tune: copied from a folder or uploaded, and edited on the page."""

import io
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from latentdiff.data.archives import PICTURES, is_picture
from latentdiff.data.layouts import read_layout
from latentdiff.data.parallel import PIXELS
from latentdiff.data.sources import open_source
from latentdiff.errors import InputError
from latentdiff.files import atomic_path, write_atomically
from latentdiff.images.decoding import decode, memory_needed
from latentdiff.serving.errors import LimitError, NotFoundError, ServingError
from latentdiff.serving.finetunes.folder import ConflictError, FineTune, FineTunes

MAX_PICTURES = 2000
MAX_BYTES = 2 * 2**30
MAX_CAPTIONS, MAX_CHARACTERS = 20, 2000  # of one picture, of one caption
THUMBNAIL = 256
CAPTIONS = "metadata.jsonl"
UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')


class Picture(NamedTuple):
    """A file, its alternative captions, and how often it occurs in an epoch."""

    file: str
    captions: list[str]
    repeats: int = 1


def read_pictures(one: FineTune) -> list[Picture]:
    """The pictures in the order of their names."""
    try:
        lines = (one.pictures / CAPTIONS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    pictures: dict[str, Picture] = {}
    for line in map(json.loads, lines):
        repeats = pictures[line["file_name"]].repeats + 1 if line["file_name"] in pictures else 1
        pictures[line["file_name"]] = Picture(line["file_name"], line["captions"], repeats)
    return [pictures[name] for name in sorted(pictures)]


def write_pictures(one: FineTune, pictures: list[Picture]) -> None:
    """Save the captions; earlier data checks are then out of date."""
    lines = [
        json.dumps({"file_name": picture.file, "captions": picture.captions, "text": ""}, ensure_ascii=False)
        for picture in pictures
        for _ in range(picture.repeats)
    ]
    write_atomically(one.pictures / CAPTIONS, "".join(f"{line}\n" for line in lines))
    (one.folder / "check.json").unlink(missing_ok=True)


def is_file_name(file: str) -> bool:
    """Whether a file name is safe on every system and refers to no other folder."""
    return not UNSAFE.search(file) and not file.startswith(".") and len(file.encode()) <= 200


def last_change(one: FineTune) -> int:
    """The time when the pictures or captions were last changed; 0 if there are none."""
    path = one.pictures / CAPTIONS
    return path.stat().st_mtime_ns if path.exists() else 0


def refuse_started(one: FineTune) -> None:
    """Raise ConflictError once there is a checkpoint."""
    if one.started:
        raise ConflictError(f"{one.name} has been trained with these pictures; copy it to change them")


def add_picture(one: FineTune, file: str, data: bytes) -> Picture:
    """Save an uploaded picture; it replaces one of the same name. Raises ServingError."""
    refuse_started(one)
    if not is_file_name(file):
        raise ServingError(f"file={file[:120]!r} is not a file name that can be saved; rename it", "file")
    if not is_picture(file):
        raise ServingError(f"{file} is not a picture; add files ending in {', '.join(sorted(PICTURES))}", "file")
    try:
        save_thumbnail(one, file, data)
    except InputError as error:
        raise ServingError(str(error), "file") from error
    pictures = {picture.file: picture for picture in read_pictures(one)}
    _check_total(len({*pictures, file}), _bytes(one) + len(data))
    with atomic_path(one.pictures / file) as path:
        path.write_bytes(data)
    picture = pictures.setdefault(file, Picture(file, []))
    write_pictures(one, list(pictures.values()))
    return picture


def add_folder(one: FineTune, finetunes: FineTunes, path: str, limit: int) -> None:
    """Copy the pictures of a folder, with their captions as `latentdiff finetune` reads them.

    limit: bytes of one picture. Pictures that cannot be read are copied too; the data check reports them. Raises
    ServingError and InputError.
    """
    folder = finetunes.source_folder(path)
    container = open_source(folder)
    for name in container.names:
        if not finetunes.contains(folder / name):
            raise ServingError(f"{name} is a link to a file outside the server's --train folder; remove it", "folder")
    pictures: dict[str, Picture] = {}
    total = 0
    for row in read_layout(container).rows:
        size = container.size(row.name)
        if size > limit:
            raise LimitError(f"{row.name} has {size} bytes, above this server's limit of {limit}; reduce it", "folder")
        file = UNSAFE.sub("_", row.name)
        if not is_file_name(file):
            raise ServingError(f"{row.name} is not a file name that can be saved; rename it", "folder")
        if file in pictures:
            pictures[file] = pictures[file]._replace(repeats=pictures[file].repeats + row.repeats)
            continue
        total += size
        _check_total(len(pictures) + 1, total)
        data = row.read()
        (one.pictures / file).write_bytes(data)
        pictures[file] = Picture(file, list(row.captions), row.repeats)
        try:
            save_thumbnail(one, file, data)
        except InputError:
            continue
    write_pictures(one, list(pictures.values()))


def copy_pictures(one: FineTune, other: FineTune) -> None:
    """The pictures and captions of another fine-tune."""
    for name in ("pictures", "thumbnails"):
        shutil.copytree(other.folder / name, one.folder / name, dirs_exist_ok=True)


def set_captions(one: FineTune, captions: Mapping[str, list[str]]) -> None:
    """Replace the captions of the named pictures. Raises NotFoundError and LimitError."""
    refuse_started(one)
    pictures = {picture.file: picture for picture in read_pictures(one)}
    for file, texts in captions.items():
        if file not in pictures:
            raise NotFoundError(f"picture {file[:120]!r} does not exist; it may have been removed", "file")
        if len(texts) > MAX_CAPTIONS or any(len(text) > MAX_CHARACTERS for text in texts):
            raise LimitError(
                f"{file}: at most {MAX_CAPTIONS} captions of {MAX_CHARACTERS} characters; shorten them", "captions"
            )
        kept = [" ".join(text.encode(errors="ignore").decode().split()) for text in texts]
        pictures[file] = pictures[file]._replace(captions=[text for text in kept if text])
    write_pictures(one, list(pictures.values()))


def remove_picture(one: FineTune, file: str) -> None:
    """Remove a picture with its captions and thumbnail. Raises NotFoundError."""
    refuse_started(one)
    pictures = {picture.file: picture for picture in read_pictures(one)}
    if pictures.pop(file, None) is None:
        raise NotFoundError(f"picture {file[:120]!r} does not exist; it may have been removed", "file")
    write_pictures(one, list(pictures.values()))
    (one.pictures / file).unlink(missing_ok=True)
    thumbnail_of(one, file).unlink(missing_ok=True)


def thumbnail_of(one: FineTune, file: str) -> Path:
    """The path of a picture's thumbnail, if the picture can be read."""
    return one.thumbnails / f"{PurePosixPath(file).name}.jpg"


def save_thumbnail(one: FineTune, file: str, data: bytes) -> None:
    """Save a small version for the page. Raises InputError for a picture that cannot be read."""
    with PIXELS.reserve(memory_needed(data, file)):
        image = decode(data, file)
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    thumbnail_of(one, file).write_bytes(buffer.getvalue())


def _bytes(one: FineTune) -> int:
    return sum(path.stat().st_size for path in one.pictures.iterdir())


def _check_total(pictures: int, size: int) -> None:
    if pictures > MAX_PICTURES or size > MAX_BYTES:
        raise LimitError(
            f"the page trains on up to {MAX_PICTURES} pictures of {MAX_BYTES // 2**30} GiB together; "
            "use latentdiff finetune for more"
        )
