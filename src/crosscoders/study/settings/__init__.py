"""The settings of a study by subject: every field and its meaning. Uses the ground alone."""
