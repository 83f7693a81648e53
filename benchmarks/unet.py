"""One U-Net call, random weights, ours and the peers' in turns: `python -m benchmarks.unet`."""

import argparse

from benchmarks import networks
from benchmarks.compare import add_options, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="sd15", choices=["sd15", "sdxl", "emoji"])
    parser.add_argument("--latents", type=int, help="height and width; what the shape was trained for by default")
    parser.add_argument("--batch", type=int, default=2, help="with guidance, a picture takes two")
    add_options(parser)
    given = parser.parse_args()
    network = networks.unet(given.shape, given.latents, batch=given.batch, device=given.device)
    about = f"One U-Net call, {given.shape}, batch {given.batch}, {network.latents}x{network.latents} latents"
    run("unet", about, network, given)


if __name__ == "__main__":
    main()
