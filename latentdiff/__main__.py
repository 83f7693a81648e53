"""The entry point of `python -m latentdiff`."""

from latentdiff.cli import main

main()
