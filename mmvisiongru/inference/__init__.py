"""Layers in another form: the fastest one for inference on a CPU, or the one that ONNX can express."""

from .optimize import optimize_for_inference

__all__ = ['optimize_for_inference']
