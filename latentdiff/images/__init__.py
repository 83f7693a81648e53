"""Images outside the model.

`reading` takes images in any form and calls `decoding` for the bytes of files. `fit`, `masks` and `edit` prepare the
inputs of a model; `upscaling`, `image_grid` and `sheet` use its outputs.
"""
