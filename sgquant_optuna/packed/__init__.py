"""Features stored at their bit width, and what is computed on them block by block."""
