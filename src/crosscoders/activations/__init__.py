"""Activations of models on tokens, stored in shards and read again as normalised batches.

Uses `language_models`, `kernels` and what lies below them.
"""
