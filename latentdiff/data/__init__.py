"""Datasets: folders and archives of captioned images, their validation, and batches for training."""
