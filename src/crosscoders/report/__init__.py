"""From results to summaries, figures, sentences, notebooks and the manifest. Uses `analysis` for intervals, and `study`."""
