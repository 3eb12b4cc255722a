"""What programs and notebooks of others use: crosscoders as objects, studies as trees of data, models with a crosscoder attached.

The package `crosscoders` itself offers these functions by name and imports them when they are first used.
"""
