"""Attaches quantizers to a user's PyG model, without rewriting the model."""
