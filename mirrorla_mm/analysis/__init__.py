"""Explanations: figures of the method, FLOPs, tables and studies."""
