"""Model files: tensors, diffusers folders, single files, LoRA and textual inversion.

Start with `components`, which opens a model: `locate_model` finds it, on this machine or on the Hugging Face hub,
`folder` or `single_file` describes it as a `ModelSource` (`model_source`), and `tensor_locations` reads its weights.
`lora_reader` reads a LoRA file, `lora_stack` applies it to a model, and `lora_writer` writes one that was trained.
"""
