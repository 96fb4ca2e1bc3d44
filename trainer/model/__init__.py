"""The network: layers, the graph built from a YAML definition, the head, anchors and non-maximum suppression."""
