"""The sparse quadratic neuron: candidates, solver, engine, metrics, ensemble. Torch is imported only by the engine."""
