"""Write an evaluation as text for the terminal, as JSON, and as an HTML page with pictures."""

import base64
import html
import io
import json
from pathlib import Path

from PIL import Image
from torch import Tensor

from latentdiff.errors import InputError
from latentdiff.files import write_atomically
from latentdiff.metrics.evaluate import Evaluation

THUMBNAIL = 128
STYLE = """body{font:15px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}
td,th{padding:.2em .8em;text-align:left}td.n{text-align:right;font-variant-numeric:tabular-nums}
.pictures{display:flex;flex-wrap:wrap;gap:1em}figure{margin:0;width:264px}figcaption{font-size:12px}"""


def summary(result: Evaluation) -> str:
    """One line per value, and the settings."""
    rows = _rows(result)
    wide = max(len(row[0]) for row in rows)
    lines = [f"{name:{wide}}  {value:>10}  {low:>10} to {high:<10}" for name, value, low, high in rows]
    return "\n".join([*lines, *_facts(result), *(f"note: {note}" for note in result.notes)])


def write_json(result: Evaluation, path: Path) -> None:
    """Write the values and settings. Raises InputError if the file cannot be written."""
    _write(path, json.dumps(result.to_json(), ensure_ascii=False, indent=2) + "\n")


def write_html(result: Evaluation, path: Path) -> None:
    """A self-contained page: the values, and generated pictures next to real ones. Raises InputError."""
    rows = "".join(
        f'<tr><td>{html.escape(name)}<td class="n">{value}<td class="n">{low} to {high}'
        for name, value, low, high in _rows(result)
    )
    facts = "".join(f"<p>{html.escape(line)}</p>" for line in [*_facts(result), *result.notes])
    pictures = "".join(_figure(*one) for one in result.shown)
    _write(
        path,
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Evaluation</title><style>{STYLE}</style>'
        f"<h1>Evaluation</h1><table><tr><th>metric<th>value<th>95 % interval{rows}</table>{facts}"
        f'<h2>Generated (left) and real (right)</h2><div class="pictures">{pictures}</div></html>\n',
    )


def _rows(result: Evaluation) -> list[tuple[str, str, str, str]]:
    values = result.to_json()["values"].values()
    return [(one["label"], *(f"{one[key]:.4g}" for key in ("value", "low", "high"))) for one in values]


def _facts(result: Evaluation) -> list[str]:
    network = f"features: {result.network['name']} ({result.network['weights']}); " if result.network else ""
    judge = f"judge: {result.judge}; " if result.judge else ""
    return [
        "generated: " + ", ".join(f"{key} {value}" for key, value in result.generated.items()),
        "real: " + ", ".join(f"{key} {value}" for key, value in result.real.items()),
        f"{network}{judge}{result.resolution} pixels; seed {result.seed}; 95 % intervals from {result.resamples} "
        "resamples",
    ]


def _figure(generated: Tensor, real: Tensor, caption: str, other: str) -> str:
    text = caption if caption == other or not other else f"{caption or '–'} | {other}"
    return f"<figure>{_image(generated)} {_image(real)}<figcaption>{html.escape(text)}</figcaption></figure>"


def _image(pixels: Tensor) -> str:
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    code = base64.b64encode(data.getvalue()).decode()
    return f'<img width="{THUMBNAIL}" alt="" src="data:image/jpeg;base64,{code}">'


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); free space or choose another file") from error
