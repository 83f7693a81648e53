"""Configs of models and of training runs: validated once, when they are read.

`base` reads YAML files and `diffusers_json` the JSON files of models. `model`, `clip`, `schedule` and `generation` are
the configs in the folder of a model; `train` is the config of a training run, and `data` the part of it about pictures.
"""
