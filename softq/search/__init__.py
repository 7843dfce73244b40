"""Decoders and tree search over a policy, a reference and values."""
