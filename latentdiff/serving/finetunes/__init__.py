"""Fine-tunes that the web page starts: each has a folder and, while it trains, a separate process."""
