"""Summaries, figures, sentences, notebooks and the manifest, made from results.

Uses `analysis` for intervals, and `study`.
"""
