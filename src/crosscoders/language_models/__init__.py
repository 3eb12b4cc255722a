"""Models: fetched, trained, fine-tuned, loaded, read and changed during a forward pass. Uses `data` and `study`."""
