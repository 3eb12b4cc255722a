"""What latents do when they are patched into models, ablated, or collapsed into circuits.

Uses `analysis` and what lies below it.
"""
