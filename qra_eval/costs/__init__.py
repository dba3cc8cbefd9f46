"""What a search takes, in time and memory."""
