"""The losses of the conformance vectors in plain Python, formula by formula: no torch, no softq, an independent text."""
