"""What is stated of each method, and the steps of its conformance vectors: one file per shape, as in objectives."""
