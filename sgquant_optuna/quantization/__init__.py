"""Quantizers, ranges and packing of plain tensors: no PyG, no Optuna."""
