"""fp16: gradients are scaled, steps with infinite ones are skipped, and the scale is resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from latentdiff.config.train import train_config
from latentdiff.errors import InputError, NonFiniteError
from latentdiff.training import loop
from latentdiff.training.denoiser import DenoiserModule
from latentdiff.training.train import train
from tests.training.small_runs import Make, losses, run

SCALE = 2.0**14


class ScalingAccelerator(Accelerator):
    """As on a GPU in fp16: accelerate does not scale gradients on the CPU, where torch can."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=4)

    def unscale_gradients(self, optimizer: Any = None) -> None:
        for prepared in self._optimizers:
            self.scaler.unscale_(prepared.optimizer)


@pytest.fixture
def scales(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The scale at each step."""
    seen: list[float] = []
    step = loop.Run.step

    def noted(self: loop.Run) -> Any:
        assert self.accelerator.scaler is not None
        seen.append(self.accelerator.scaler.get_scale())
        return step(self)

    monkeypatch.setattr(loop, "Accelerator", ScalingAccelerator)
    monkeypatch.setattr(loop.Run, "step", noted)
    return seen


def overflow_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Losses of 10^32, whose scaled gradients are infinite in float32 but which are finite themselves."""
    forward, calls = DenoiserModule.forward, []

    def large(self: DenoiserModule, batch: dict[str, Any]) -> Any:
        calls.append(batch)
        found = forward(self, batch)
        return {"loss": found["loss"] * (1e36 if len(calls) in steps or not steps else 1)}

    monkeypatch.setattr(DenoiserModule, "forward", large)


def trained(folder: Path, name: str, step: int) -> list[torch.Tensor]:
    """The weights of a checkpoint, not averaged."""
    return list(load_file(folder / name / "checkpoints" / f"step-{step:08d}" / "model.safetensors").values())


def test_scaling_changes_no_loss(unet_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run(unet_config(tmp_path / "plain", max_steps=6))
    monkeypatch.setattr(loop, "Accelerator", ScalingAccelerator)
    assert losses(run(unet_config(tmp_path / "scaled", max_steps=6))) == pytest.approx(losses(plain), rel=1e-5)


def test_an_infinite_gradient_skips_the_step_and_halves_the_scale(
    unet_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scales: list[float]
) -> None:
    overflow_at(monkeypatch, 3)
    run(unet_config(tmp_path / "three", max_steps=3, lr_schedule="constant"))
    run(unet_config(tmp_path / "two", max_steps=2, lr_schedule="constant"))
    assert not any(
        torch.ne(a, b).any() for a, b in zip(trained(tmp_path, "three", 3), trained(tmp_path, "two", 2), strict=True)
    )
    assert scales[:3] == [SCALE] * 3
    config = unet_config(tmp_path / "three", max_steps=9, lr_schedule="constant")
    run(config, resume=True)
    assert scales[5:] == [SCALE / 2] * 4 + [SCALE] * 2  # resumed, and grown after four good steps


def test_a_run_that_only_overflows_is_stopped(
    unet_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scales: list[float]
) -> None:
    monkeypatch.setattr(loop, "LOWEST_SCALE", SCALE / 2**5)
    overflow_at(monkeypatch)
    with pytest.raises(NonFiniteError, match=r"about 50 steps up to step 5, .* skipped; set run.mixed_precision"):
        run(unet_config(tmp_path / "run", max_steps=20))


def test_fp16_is_refused_without_a_gpu(unet_config: Make, tmp_path: Path) -> None:
    config = unet_config(tmp_path / "run", max_steps=1)
    config["run"]["mixed_precision"] = "fp16"
    with pytest.raises(InputError, match="fp16 requires a GPU and this machine has none; use bf16 or no"):
        train(train_config.validate_python(config))
    assert not (tmp_path / "run").exists()
