"""`generate --prompts`: generate the missing images of a file of prompts, in one or several processes."""

import os
import sys

from tqdm import tqdm

from latentdiff.cli.image_generator import ImageGenerator
from latentdiff.cli.image_plan import PlannedImage, batches, makes_folder
from latentdiff.cli.launch import started_processes
from latentdiff.cli.progress import preview_file
from latentdiff.cli.request import Request

BATCH = 4  # the default of --batch-size


def generate_missing(generator: ImageGenerator, planned: list[PlannedImage], request: Request) -> int:
    """Check all lines and all existing files, then generate the missing images; returns how many were refused.

    A batch with a missing image is generated completely, so that an image is bit-identical regardless of which files
    existed before and which process generates it. Raises InputError.
    """
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", request.num_processes or 1))
    groups = batches(planned, generator.settings, request.batch_size or BATCH)
    for batch in groups:
        generator.check(batch)
    done = {item.path for item in planned if generator.exists(item)}
    if done and rank == 0:
        print(f"{len(done)} of {len(planned)} images exist and are kept", file=sys.stderr)
    if len(done) == len(planned):
        return 0
    if makes_folder(request.output):
        request.output.mkdir(exist_ok=True)
    own = [batch for batch in groups[rank::processes] if any(item.path not in done for item in batch)]
    total = sum(item.path not in done for batch in own for item in batch)
    label = "images" if processes == 1 else f"images of process 1 of {processes}"
    hidden, refused = True if rank else None, 0
    preview = preview_file(generator.opened.pipe, request.preview, request.preview_every)
    with started_processes(processes), tqdm(desc=label, total=total, disable=hidden, file=sys.stderr) as bar:
        for batch in own:
            images = generator.generate(batch, preview)
            for item, image in zip(batch, images, strict=True):
                if item.path not in done:
                    refused += not generator.write(item, image)
                    bar.update()
    return refused
