"""From files to batches, one stage a file, in the order that a batch meets them."""
