"""What trained crosscoders are like: reconstruction, classes of latents, seeds, pages.

Uses `activations`, `crosscoder`, `language_models` and what lies below them.
"""
