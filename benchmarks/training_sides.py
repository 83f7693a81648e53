"""The process of one side of `benchmarks.training`: `python -m benchmarks.training_sides SIDE FOLDER`.

Each line on stdin is a number of steps to run; each line on stdout contains their times.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.training_shapes import Shape
from latentdiff.checkpoints.components import Components
from latentdiff.checkpoints.locate_model import locate
from latentdiff.config.train import DenoiserConfig
from latentdiff.data.dataset import load_pixels, read_rows
from latentdiff.data.layouts import DataRow
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.models.vae import AutoencoderKL
from latentdiff.runtime.memory import peak_memory
from latentdiff.sampling.schedule import Schedule
from latentdiff.text.text_conditioner import TextConditioner
from latentdiff.training.denoiser import DenoiserTask
from latentdiff.training.frozen import COMPUTE
from latentdiff.training.loop import Run
from latentdiff.training.processes import usual_precision
from latentdiff.training.run_folder import RunFolder

Item = dict[str, Tensor]


class Timed(Iterator[Any]):
    """Batches, and the seconds spent waiting for them."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches, self.seconds = batches, 0.0

    def __next__(self) -> Any:
        start = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - start
        return batch


class Side(Protocol):
    batches: Timed

    def step(self) -> Any: ...


def config(shape: Shape, folder: Path) -> DenoiserConfig:
    return DenoiserConfig.model_validate(
        {
            "task": "unet",
            "data": {"train": folder / "pictures", "resolution": shape.resolution, "batch_size": shape.batch},
            "run": {"output": folder / "run", "tracker": "none", "mixed_precision": usual_precision()},
        }
    )


class Ours:
    """The training loop of this package."""

    def __init__(self, shape: Shape, folder: Path) -> None:
        text = TextConditioner([shape.tokenizer], [shape.text_encoder()])
        vae = AutoencoderKL(shape.vae).requires_grad_(False).eval()
        parts = Components(UNet2DConditionModel(shape.unet), vae, text, Schedule(shape.schedule))
        settings = config(shape, folder)
        output = RunFolder(settings.run.output)
        run = Run(DenoiserTask(settings, output, parts), settings, output, resume=False)
        run.module.train()
        run.batches = self.batches = Timed(run.batches)
        self.step = run.step


class Pictures(torch.utils.data.Dataset[Item]):
    """Pictures that are decoded and tokenised on every access."""

    def __init__(self, rows: list[DataRow], shape: Shape) -> None:
        from transformers import CLIPTokenizer

        self.rows, self.shape = rows, shape
        length = shape.text.max_position_embeddings
        self.tokenizer = CLIPTokenizer.from_pretrained(locate(None) / "tokenizer", model_max_length=length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        row = self.rows[index]
        ids = self.tokenizer(row.captions[0], padding="max_length", truncation=True, return_tensors="pt")
        return {"pixels": load_pixels(row, self.shape.resolution), "ids": ids.input_ids[0]}


class Encoded(torch.utils.data.Dataset[Item]):
    """The same pictures, encoded once."""

    def __init__(self, pictures: Pictures, encode: Callable[[Item], Item]) -> None:
        batches = (encode({key: value[None] for key, value in item.items()}) for item in pictures)  # type: ignore[attr-defined]
        self.items = [{key: value[0] for key, value in batch.items()} for batch in batches]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]


class Script:
    """The step of diffusers' train_text_to_image. cached: outputs of VAE and text encoder are precomputed."""

    def __init__(self, shape: Shape, folder: Path, cached: bool) -> None:
        import diffusers
        from diffusers.training_utils import EMAModel
        from transformers import CLIPTextConfig, CLIPTextModel

        diffusers.utils.logging.set_verbosity_error()
        precision = usual_precision()
        self.accelerator, self.dtype = Accelerator(mixed_precision=precision), COMPUTE[precision]
        optim = config(shape, folder).optim
        unet = diffusers.UNet2DConditionModel.from_config(shape.unet.write())
        self.scale = shape.vae.scaling_factor
        self.scheduler = diffusers.DDPMScheduler.from_config(shape.schedule.write())
        self.vae = diffusers.AutoencoderKL.from_config(shape.vae.write()).requires_grad_(False).eval()
        self.text = CLIPTextModel(CLIPTextConfig.from_dict(shape.text.write())).requires_grad_(False).eval()
        for frozen in (self.vae, self.text):
            frozen.to(self.accelerator.device, self.dtype)
        optimizer = torch.optim.AdamW(unet.parameters(), optim.learning_rate, optim.betas, weight_decay=0.01)
        pictures = Pictures(read_rows(folder / "pictures", config(shape, folder).data), shape)
        self.cached = cached
        data = Encoded(pictures, self.encode) if cached else pictures
        loader = DataLoader(data, shape.batch, shuffle=True, drop_last=True)
        self.unet, self.optimizer, loader = self.accelerator.prepare(unet, optimizer, loader)
        self.ema = EMAModel(unet.parameters(), model_cls=type(unet), model_config=unet.config)
        self.ema.to(self.accelerator.device)
        self.batches = Timed(batch for _ in iter(int, 1) for batch in loader)
        self.unet.train()

    @torch.no_grad()
    def encode(self, batch: Item) -> Item:
        """Mean and standard deviation from the VAE, and hidden states from the text encoder."""
        device = self.accelerator.device
        posterior = self.vae.encode(batch["pixels"].to(device, self.dtype)).latent_dist
        hidden = self.text(batch["ids"].to(device), return_dict=False)[0]
        return {"mean": posterior.mean, "std": posterior.std, "hidden": hidden}

    def step(self) -> None:
        batch = next(self.batches)
        encoded = batch if self.cached else self.encode(batch)
        with self.accelerator.accumulate(self.unet):
            loss = self.loss(encoded)
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.unet.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.ema.step(self.unet.parameters())

    def loss(self, encoded: Item) -> Tensor:
        mean = encoded["mean"]
        latents = self.scale * (mean + encoded["std"] * torch.randn_like(mean)).float()
        noise = torch.randn_like(latents)
        steps = self.scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, steps, (len(latents),), device=latents.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps).to(self.dtype)
        output = self.unet(noisy, timesteps, encoded["hidden"], return_dict=False)[0]
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        target = self.scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
        return F.mse_loss(output.float(), target)


SIDES: dict[str, Callable[[Shape, Path], Side]] = {
    "diffusers": lambda shape, folder: Script(shape, folder, cached=False),
    "diffusers, cached": lambda shape, folder: Script(shape, folder, cached=True),
    "latentdiff": Ours,
}


def take(side: Side, steps: int) -> dict[str, Any]:
    """Seconds of each step, seconds spent waiting for data, and peak memory so far in bytes."""
    seconds, waited = [], side.batches.seconds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for _ in range(steps):
        start = time.perf_counter()
        side.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "waited": side.batches.seconds - waited, "peak_bytes": peak_memory(device)}


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    answers = sys.stdout
    with redirect_stdout(sys.stderr):
        side = SIDES[name](Shape.model_validate_json((folder / "shape.json").read_text(encoding="utf-8")), folder)
        for line in sys.stdin:
            print(json.dumps(take(side, int(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
