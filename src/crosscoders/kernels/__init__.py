"""The arithmetic of sparse codes on a CPU and on a GPU, behind one interface. Uses the ground alone."""
