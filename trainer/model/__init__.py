"""Builds the network and reads its output: layers, graph, head, anchors and non-maximum suppression."""

__all__ = ["anchors", "batched_suppression", "compiled", "definition", "detect", "graph", "postprocess"]
