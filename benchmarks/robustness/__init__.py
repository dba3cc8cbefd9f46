"""Runs that are killed, inputs that are wrong, screens that are narrow."""
