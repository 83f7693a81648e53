"""Time one U-Net call with random weights, ours and other packages': `python -m benchmarks.unet`."""

import argparse

from benchmarks import networks
from benchmarks.compare import add_options, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="sd15", choices=networks.SHAPES)
    parser.add_argument("--latents", type=int, help="height and width; by default those that the shape was trained at")
    parser.add_argument("--batch", type=int, default=2, help="rows of a batch; a picture with guidance needs two")
    add_options(parser)
    given = parser.parse_args()
    network = networks.unet(given.shape, given.latents, batch=given.batch, device=given.device)
    side = network.latents
    about = f"One U-Net call, {given.shape} with random weights, batch {given.batch}, {side}x{side} latents"
    run(f"unet_{given.shape}_{side}_batch{given.batch}", about, network, given)


if __name__ == "__main__":
    main()
