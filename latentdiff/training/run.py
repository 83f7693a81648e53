"""From a checked config to a finished run."""

from accelerate.utils import set_seed

from latentdiff.config.train import FineTuneConfig, TextTrainConfig, TrainConfig, UNetTrainConfig, VAETrainConfig
from latentdiff.training.loop import Task, fit


def train(config: TrainConfig) -> None:
    """Train what `config.task` names, into the folder `config.run.output`, which is made if it is not there."""
    set_seed(config.run.seed)
    task = _task(config)
    config.run.output.mkdir(parents=True, exist_ok=True)
    fit(task, config)


def _task(config: TrainConfig) -> Task:
    match config:
        case VAETrainConfig():
            from latentdiff.training.autoencoder import AutoencoderTask

            return AutoencoderTask(config)
        case TextTrainConfig():
            from latentdiff.training.text_encoder import TextEncoderTask

            return TextEncoderTask(config)
        case UNetTrainConfig():
            from latentdiff.training.denoiser import scratch_task

            return scratch_task(config)
        case FineTuneConfig():
            from latentdiff.training.denoiser import finetune_task

            return finetune_task(config)
    raise TypeError(type(config))
