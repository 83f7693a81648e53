"""The networks, with the parameter names of diffusers."""
