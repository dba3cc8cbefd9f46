"""Backends on other libraries."""
