"""Quantizers, ranges and packing of plain tensors: imports neither PyG nor Optuna."""
