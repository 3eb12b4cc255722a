"""Problems of a study that no section of it shows by itself: names that are not defined, sizes that do not fit."""
