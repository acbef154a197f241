"""Measuring models and operators: time, memory, operations."""
