"""Names of samplers and schedules in A1111 and ComfyUI."""

A1111_SAMPLERS = {
    "DDIM": "ddim",
    "DDPM": "ddpm",
    "Euler": "euler",
    "Euler a": "euler_ancestral",
    "Heun": "heun",
    "DPM++ 2M": "dpmpp_2m",
    "DPM++ 2M SDE": "dpmpp_2m_sde",
    "LCM": "lcm",
}
"""Our names by A1111's labels; samplers without an entry are labelled with our name."""

A1111_SCHEDULES = {
    "Uniform": "linspace",
    "Karras": "karras",
    "Exponential": "exponential",
    "SGM Uniform": "sgm_uniform",
    "Simple": "simple",
    "Beta": "beta",
    "Align Your Steps": "align_your_steps",
    "DDIM": "leading",
}
A1111_AUTOMATIC = {"ddim": "leading", "dpmpp_2m": "karras", "dpmpp_2m_sde": "exponential", "lcm": None}
"""The spacing that "Automatic" stands for with each sampler; `linspace` with others."""

A1111_UPSCALERS = {"Latent": "latent", "Latent (bicubic)": "latent", "Lanczos": "lanczos", "None": "lanczos"}
"""How a second pass enlarges the image, by A1111's labels; all others are names of files."""

COMFYUI_SCHEDULES = {
    "normal": "linspace",
    "karras": "karras",
    "exponential": "exponential",
    "sgm_uniform": "sgm_uniform",
    "simple": "simple",
    "beta": "beta",
    "ddim_uniform": "leading",
}
