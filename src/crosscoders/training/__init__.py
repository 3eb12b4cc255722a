"""From activations to trained crosscoders: gradients, optimizer, loop, checkpoints.

Uses `activations`, `crosscoder`, `kernels` and `study`.
"""
