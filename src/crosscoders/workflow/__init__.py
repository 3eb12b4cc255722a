"""What Snakemake asks of the package: the sections of all stages, and the files that a stage depends on.

Uses the sections of all rooms.
"""
