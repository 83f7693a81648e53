"""Arrange images in a grid without labels."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def image_grid(pixels: Tensor, columns: int) -> Image.Image:
    """Arrange images [N, 3, H, W] in [-1, 1] in rows of `columns` in one RGB image; empty cells are white."""
    count, _, height, width = pixels.shape
    rows = -(-count // columns)
    canvas = torch.ones(rows * columns, 3, height, width)
    canvas[:count] = pixels.float().cpu().clamp(-1, 1)
    sheet = canvas.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)
    return Image.fromarray(((sheet + 1) * 127.5).round().numpy().astype(np.uint8))
