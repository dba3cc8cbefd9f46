"""Bytes and peaks, beside what was estimated."""
