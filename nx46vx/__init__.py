"""NX46-VX: papyrus surfaces in CT volumes, by a grid of sparse quadratic neurons searched in parallel."""

__version__ = "0.1.0"
