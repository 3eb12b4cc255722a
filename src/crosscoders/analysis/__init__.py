"""Measures of trained crosscoders: reconstruction, classes of latents, agreement of seeds, and pages of latents.

Uses `activations`, `crosscoder`, `language_models` and what lies below them.
"""
