"""The crosscoder itself: its weights, its code, its file form. Uses `kernels` and `study`."""
