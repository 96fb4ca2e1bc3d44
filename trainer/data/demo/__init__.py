"""Makes the embedded data set."""
