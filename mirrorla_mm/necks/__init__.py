"""Necks: what stands between a backbone and a head."""

from .projection_neck import ProjectionNeck

__all__ = ['ProjectionNeck']
