"""What latents do: patched into models, ablated, collapsed into circuits. Uses `analysis` and what lies below it."""
