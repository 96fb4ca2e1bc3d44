"""Using a trained detector: loading it, reading pictures and films, writing what was found, exporting."""
