"""Crosscoders in other people's formats and ours: read from a folder, written to a folder.

The room may import the crosscoder and what lies below it.
"""
