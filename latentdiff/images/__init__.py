"""Images outside the model: guarded decoding, resizing, grids."""
