"""Datasets: folders and archives of captioned images, their check, and batches for training."""
