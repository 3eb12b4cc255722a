"""Synthetic sources with known concepts, and crosscoders judged on them. Uses all rooms below `report`."""
