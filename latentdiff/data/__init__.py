"""Datasets: folders and archives of captioned images, their validation, and batches for training.

`sources` opens a folder, an archive or a table, `layouts` finds the captions in it, and `check` validates the result.
`dataset` reads the rows of a config, to train on pixels; `latent_cache` encodes them once, to train on latents.
`batch_sampler` draws the rows of each step, from `buckets` of one aspect ratio.
"""
