"""Monitors and steering vectors of other projects: repeng's GGUF, IBM's CAST, steering_vectors' layers."""
