"""What every job costs, computed from the study before anything runs: memory, disk, time, floating-point operations."""
