"""The settings of a study by subject: every field and its meaning.

It uses no other room, only the modules that lie beside the rooms: `artifacts`, `device`, `errors`, `home` and `stage`.
"""
