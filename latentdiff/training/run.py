"""From a checked config to a finished run."""

from accelerate.utils import set_seed

from latentdiff.config.train import TextTrainConfig, TrainConfig, UNetTrainConfig, VAETrainConfig
from latentdiff.errors import InputError
from latentdiff.training.loop import Task, fit


def train(config: TrainConfig) -> None:
    """Train what `config.task` names, into `config.run.output`, which is made if its parent exists."""
    output = config.run.output
    if not output.parent.is_dir():
        raise InputError(f"run.output={str(output)!r}: the folder {output.parent} does not exist; make it first")
    set_seed(config.run.seed)
    task = _task(config)
    output.mkdir(exist_ok=True)
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
            from latentdiff.training.denoiser import DenoiserTask

            return DenoiserTask(config)
    raise TypeError(type(config))
