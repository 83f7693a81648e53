"""Time decoding latents with a VAE of random weights, ours and other packages': `python -m benchmarks.decode`."""

import argparse

from benchmarks import networks
from benchmarks.compare import add_options, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="sd15", choices=["sd15", "emoji"])
    parser.add_argument(
        "--size", type=int, help="side of the square in pixels; by default the size that the shape was trained at"
    )
    parser.add_argument("--batch", type=int, default=1)
    add_options(parser)
    given = parser.parse_args()
    network = networks.decoder(given.shape, given.size, batch=given.batch, device=given.device)
    side = network.size
    about = f"One decoding, {given.shape} with random weights, batch {given.batch}, {side}x{side} pixels"
    run(f"decode_{given.shape}_{side}_batch{given.batch}", about, network, given)


if __name__ == "__main__":
    main()
