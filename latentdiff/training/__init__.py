"""Training: one loop for VAEs, text encoders and denoisers, and the folder that a run writes."""
