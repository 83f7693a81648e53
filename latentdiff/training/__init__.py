"""Training: one loop for VAEs, text encoders and denoisers, and the folder that a run writes.

`finetune` makes a config from a folder of pictures and a few options. `train` runs a config: `build_task` makes its
`task`, which is one of `denoiser`, `autoencoder` and `text_encoder`, and `loop` trains it. `run_folder` lists the files
that a run writes, and `report` summarises them.
"""
