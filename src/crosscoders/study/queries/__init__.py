"""Questions that rules and sections ask of a study. They read settings alone, and compute nothing."""
