"""The arithmetic of sparse codes on a CPU and on a GPU, behind one interface.

It uses no other room, only the modules that lie beside the rooms: `device`, `errors`, `home`, `stage` and `storage`.
"""
