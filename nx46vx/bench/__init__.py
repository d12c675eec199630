"""Benchmarks of the product against fixed yardsticks, taken in the same process, on the same machine, side by side."""
