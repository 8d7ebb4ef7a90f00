"""Quantizers onto a user's PyG model, without rewriting it."""
