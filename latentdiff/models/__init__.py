"""The networks, with the parameter names of diffusers.

Start with `unet`, which consists of `layers` and `attention` and reads a `conditioning`; then `vae`, which `tiled_vae`
applies to large images. `esrgan` is the network of upscalers.
"""
