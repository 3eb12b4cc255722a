"""What a study says: its settings, checked when they are read, and questions that rules ask of it. Uses the ground alone."""
