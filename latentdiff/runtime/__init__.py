"""How networks run: device, fast layers, C++ kernels and memory.

Start with `options`, which names every choice, and `optimize`, which replaces plain layers by the fast ones of
`native_layers`, `packed`, `fused_attention`, `fused_upsample` and `time_embedding_cache`. Their C++ kernels are in
`kernels/`; `kernel_build` compiles them and `native` loads them. `compiled` uses torch.compile; `disk_offload` saves
memory. The results equal those of the plain layers up to rounding, except for `int8` and `deepcache`, the
approximations that `approximate` selects by name.
"""
