"""Open the pipeline of a command, with its LoRAs and learned words."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentdiff.cli.options import NAMES as OPEN_NAMES

MODEL_NAMES = {"model", "loras", "embeddings", *OPEN_NAMES}
DEFAULT_OPTIONS: dict[str, Any] = {"optimize": "auto", "approximate": (), "low_memory": False}


@dataclass
class Opened:
    """A pipeline with its additions, their entries in recipes (`same`), and an optional refiner."""

    pipe: Any
    same: dict[str, Any] = field(default_factory=dict)
    refiner: Any = None


def open_pipeline(device: str, settings: dict[str, Any]) -> Opened:
    """Open the model and the additions named in the settings; removes their entries from the settings."""
    from latentdiff.checkpoints.lora_reader import find_lora
    from latentdiff.checkpoints.textual_inversion import find_learned
    from latentdiff.pipeline import LatentDiffusionPipeline
    from latentdiff.recipe.model_hash import file_hash, hash_model

    model, dtype = settings.pop("model", None), settings.pop("dtype", "auto")
    options = {key: settings.pop(key) for key in DEFAULT_OPTIONS}
    how = {key: settings.pop(key, None) for key in OPEN_NAMES}
    allow_pickle = bool(how.pop("allow_pickle"))
    pipe = LatentDiffusionPipeline.from_pretrained(model, device, dtype, **options, **how, allow_pickle=allow_pickle)
    loras, embeddings = settings.pop("loras", ()), settings.pop("embeddings", ())
    for file, *weights in loras:
        name = Path(file).stem  # the name in prompts
        name = name if name not in pipe.adapters else f"{name}-{len(pipe.adapters)}"
        pipe.load_lora(file, name, (weights[0], weights[1]), allow_pickle)
    for embedding in embeddings:
        words = pipe.load_textual_inversion(embedding, allow_pickle)
        print(f"{embedding} adds {', '.join(words)}", file=sys.stderr)
    assert pipe.source is not None
    lora_files = [find_lora(Path(file)) for file, *_ in loras]
    additions = [*lora_files, *(find_learned(Path(file)) for file in embeddings)]
    hashes = {} if pipe.source.path.is_dir() else {"model": file_hash(pipe.source.path)[:10]}
    hashes |= {f"lora:{path.stem}": file_hash(path)[:10] for path in lora_files}
    same = {"dtype": str(pipe.dtype).removeprefix("torch."), "model": model, "hashes": hashes, **how}
    same |= {"model_hash": hash_model(pipe.source, *additions), "loras": loras, "embeddings": embeddings}
    same |= {key: getattr(pipe.options, key) for key in DEFAULT_OPTIONS}
    return Opened(pipe, same)
