"""What a search says of itself: the HTML report, the live view, and the words that both use."""
