"""Noise schedules as float64 tables: x_t = alpha_t * x0 + sigma_t * noise."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from latentdiff.config.schedule import ScheduleConfig
from latentdiff.device_transfer import send
from latentdiff.errors import InputError
from latentdiff.sampling.spacings import SIGMA_GRIDS, timestep_grid

LEAST_SIGNAL = 1e-8  # of alpha before any rescaling; below it, predictions of x0 overflow


@dataclass(frozen=True)
class Grid:
    """The N timesteps of a sampling run, and its N + 1 noise levels, of which the last is the end of sampling."""

    timesteps: Tensor
    alphas: Tensor
    sigmas: Tensor


@dataclass(frozen=True)
class Schedule:
    """The T noise levels of a `ScheduleConfig`, with conversions between noise, predictions and x0.

    Raises InputError for a zero terminal SNR with `prediction_type='epsilon'`, for which x0 is undefined at the last
    level, and for betas that leave no signal at other levels.
    """

    config: ScheduleConfig

    def __post_init__(self) -> None:
        if self.config.rescale_betas_zero_snr and self.config.prediction_type == "epsilon":
            raise InputError(
                "prediction_type='epsilon' cannot start from zero signal (rescale_betas_zero_snr=True); "
                "use v_prediction or sample"
            )
        self._check_signal()

    def _check_signal(self) -> None:
        config = self.config
        if config.prediction_type == "flow":
            return
        if config.rescale_betas_zero_snr and config.num_train_timesteps == 1:
            raise InputError("rescale_betas_zero_snr=True needs num_train_timesteps of 2 or more, not 1")
        left = float((1 - betas(config)).prod().sqrt())
        if left < LEAST_SIGNAL:
            raise InputError(
                f"the betas of {config.num_train_timesteps} timesteps leave {left:.1g} of the signal at the last, less "
                f"than {LEAST_SIGNAL:g}; use fewer timesteps or smaller betas"
            )

    @cached_property
    def alphas(self) -> Tensor:
        """float64 [T]."""
        if self.config.prediction_type == "flow":
            return 1 - flow_sigmas(self.config.num_train_timesteps, self.config.shift)
        return alphas_cumprod(self.config).sqrt()

    @cached_property
    def sigmas(self) -> Tensor:
        """float64 [T]."""
        if self.config.prediction_type == "flow":
            return flow_sigmas(self.config.num_train_timesteps, self.config.shift)
        return (1 - alphas_cumprod(self.config)).sqrt()

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t for integer timesteps [B]; x0, noise: [B, ...]."""
        alpha, sigma = self._at(timesteps, x0)
        return alpha * x0 + sigma * noise

    def training_target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The training target: noise, x0, velocity (Salimans & Ho 2022, app. D) or flow (Lipman et al. 2023)."""
        alpha, sigma = self._at(timesteps, x0)
        match self.config.prediction_type:
            case "epsilon":
                return noise
            case "sample":
                return x0
            case "v_prediction":
                return alpha * noise - sigma * x0
            case "flow":
                return noise - x0

    def min_snr_weight(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Loss weights [B]: min(SNR, gamma), converted from x0 to the prediction type (Hang et al. 2023, sec. 3.4)."""
        snr = (self.alphas / self.sigmas).square()
        scale = {
            "epsilon": snr,
            "sample": torch.ones_like(snr),
            "v_prediction": snr + 1,
            "flow": snr + 2 * snr.sqrt() + 1,
        }
        weight = torch.where(snr > 0, snr.clamp(max=gamma), 0) / scale[self.config.prediction_type].clamp_min(1e-12)
        return weight.to(timesteps.device)[timesteps].float()

    def x0_coefficients(self, alphas: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        """(c_sample, c_output) with x0 = c_sample * x_t + c_output * model_output, for levels of any shape."""
        match self.config.prediction_type:
            case "epsilon":
                return 1 / alphas, -sigmas / alphas
            case "sample":
                return torch.zeros_like(alphas), torch.ones_like(alphas)
            case "v_prediction":
                return alphas, -sigmas
            case "flow":
                return torch.ones_like(alphas), -sigmas

    def grid(self, num_inference_steps: int, spacing: str | None = None, clean: bool = False) -> Grid:
        """The levels of a run of N steps. clean: it ends at x0; otherwise `set_alpha_to_one` of the config decides.

        spacing: one of `spacings.SPACINGS`, or lcm; the config's if None. The first level is the noisiest of the
        spacing, and levels are distinct. Raises InputError unless 1 <= N <= T, and for an inapplicable spacing.
        """
        config, total = self.config, self.config.num_train_timesteps
        if not 1 <= num_inference_steps <= total:
            raise InputError(f"num_inference_steps={num_inference_steps} (--steps) must be from 1 to {total}; try 20")
        spacing = spacing or config.timestep_spacing
        if spacing in SIGMA_GRIDS:
            return self.grid_at(self._timesteps_of(SIGMA_GRIDS[spacing](num_inference_steps, *self._ratios())), clean)
        return self.grid_at(timestep_grid(num_inference_steps, total, spacing, config.steps_offset), clean)

    def grid_at(self, timesteps: Tensor, clean: bool = False) -> Grid:
        """The levels at descending timesteps; for fractional ones, log(sigma / alpha) is interpolated linearly."""
        if torch.equal(timesteps, timesteps.round()):
            alphas, sigmas = self.alphas[timesteps.long()], self.sigmas[timesteps.long()]
        else:
            alphas, sigmas = self._between(timesteps)
        config = self.config
        clean = clean and config.final_sigmas_type == "zero"
        done = clean or config.set_alpha_to_one or config.prediction_type == "flow"
        last_alpha = torch.ones(1, dtype=torch.float64) if done else self.alphas[:1]
        last_sigma = torch.zeros(1, dtype=torch.float64) if done else self.sigmas[:1]
        return Grid(timesteps, torch.cat([alphas, last_alpha]), torch.cat([sigmas, last_sigma]))

    def _between(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.prediction_type == "flow":
            sigmas = torch.from_numpy(np.interp(timesteps.numpy(), np.arange(len(self.sigmas)), self.sigmas.numpy()))
            return 1 - sigmas, sigmas
        angles = torch.atan2(self.sigmas, self.alphas)  # finite also where there is no signal
        if self.alphas[-1] == 0:
            angle = torch.from_numpy(np.interp(timesteps.numpy(), np.arange(len(angles)), angles.numpy()))
            return angle.cos(), angle.sin()
        ratio = np.interp(timesteps.numpy(), np.arange(len(self.alphas)), self._log_ratio().numpy())
        return _levels(torch.from_numpy(ratio).exp())

    def _ratios(self) -> tuple[float, float]:
        """sigma / alpha of the last timestep and of the first."""
        ratios = self._log_ratio().exp()
        return float(ratios[-1]), float(ratios[0])

    def _timesteps_of(self, ratios: Tensor) -> Tensor:
        """The fractional timestep of each sigma / alpha; descending."""
        log_ratio = self._log_ratio()
        return torch.from_numpy(np.interp(ratios.log().numpy(), log_ratio.numpy(), np.arange(len(log_ratio))))

    @property
    def has_sigma_range(self) -> bool:
        """Whether spacings in sigma, such as `karras`, apply: not with a zero terminal SNR, and not to flow models."""
        return bool(self.alphas[-1] != 0) and self.config.prediction_type != "flow"

    def _log_ratio(self) -> Tensor:
        if not self.has_sigma_range:
            raise InputError("spacings in sigma require a signal at the last timestep; use spacing='trailing'")
        return (self.sigmas / self.alphas).log()

    def _at(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, in one copy to the device."""
        index = timesteps.to(self.alphas.device)
        levels = torch.stack((self.alphas[index], self.sigmas[index])).to(like.dtype)
        alpha, sigma = send(levels, like.device).view(2, -1, *[1] * (like.ndim - 1))
        return alpha, sigma


def alphas_cumprod(config: ScheduleConfig) -> Tensor:
    """float64 [T]: the product of (1 - beta) up to each timestep (Ho et al. 2020, eq. 4)."""
    cumulative = (1 - betas(config)).cumprod(0)
    return rescale_zero_terminal_snr(cumulative) if config.rescale_betas_zero_snr else cumulative


def betas(config: ScheduleConfig) -> Tensor:
    """float64 [T]: linear (Ho et al. 2020), scaled linear (Rombach et al. 2022) or cosine (Nichol & Dhariwal 2021)."""
    total, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.trained_betas is not None:
        return torch.tensor(config.trained_betas, dtype=torch.float64)
    match config.beta_schedule:
        case "linear":
            return torch.linspace(start, end, total, dtype=torch.float64)
        case "scaled_linear":
            return torch.linspace(math.sqrt(start), math.sqrt(end), total, dtype=torch.float64).square()
        case "squaredcos_cap_v2":
            times = torch.arange(total + 1, dtype=torch.float64) / total
            alpha_bar = torch.cos((times + 0.008) / 1.008 * math.pi / 2).square()
            return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def rescale_zero_terminal_snr(cumulative: Tensor) -> Tensor:
    """Shift and scale sqrt(alphas_cumprod): the last becomes 0, the first is unchanged (Lin et al. 2023, alg. 1)."""
    root = cumulative.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()


def flow_sigmas(total: int, shift: float) -> Tensor:
    """float64 [T]: (t + 1) / T, moved towards noise by `shift` (Esser et al. 2024, eq. 23)."""
    times = torch.arange(1, total + 1, dtype=torch.float64) / total
    return shift * times / (1 + (shift - 1) * times)


def _levels(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Variance-preserving (alpha, sigma) with sigma / alpha = ratio."""
    alpha = (1 + ratio.square()).rsqrt()
    return alpha, ratio * alpha
