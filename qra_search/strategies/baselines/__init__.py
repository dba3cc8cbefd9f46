"""Strategies of the papers and of other packages, to compare ours with; one file each, and what several share."""
