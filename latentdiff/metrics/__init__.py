"""Evaluation metrics, and `evaluate`, which computes them with confidence intervals."""

from latentdiff.metrics.alignment import alignment, retrieval
from latentdiff.metrics.evaluate import Evaluation, evaluate
from latentdiff.metrics.features import feature_network
from latentdiff.metrics.frechet import frechet_distance
from latentdiff.metrics.inception_score import class_score
from latentdiff.metrics.kid import kernel_distance
from latentdiff.metrics.prdc import density_coverage, precision_recall
from latentdiff.metrics.reconstruction import psnr, reconstruct, ssim
from latentdiff.metrics.wasserstein import sliced_wasserstein

__all__ = [
    "Evaluation",
    "alignment",
    "class_score",
    "density_coverage",
    "evaluate",
    "feature_network",
    "frechet_distance",
    "kernel_distance",
    "precision_recall",
    "psnr",
    "reconstruct",
    "retrieval",
    "sliced_wasserstein",
    "ssim",
]
