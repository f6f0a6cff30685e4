"""Learned latency: what answers where nothing was measured."""
