"""Trellis codes: the weights of a column are a path, near the limit of what so many bits can say."""
