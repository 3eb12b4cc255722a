"""What a study says: its settings, checked when they are read, and questions that rules ask of it.

It uses no other room, only the modules that lie beside the rooms: `artifacts`, `device`, `errors`, `home` and `stage`.
"""
