"""The study of docs/study.md: bytes needed for a quality, against uniform plans, searches and other tools."""
