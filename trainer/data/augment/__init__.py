"""Changes images and boxes of training samples."""
