"""The arguments of a pipeline call, read and checked."""

from latentdiff.inputs.normalise import Inputs, read_inputs

__all__ = ["Inputs", "read_inputs"]
