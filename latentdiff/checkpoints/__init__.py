"""Model files: tensors, diffusers folders, the hub, LoRA and textual inversion."""
