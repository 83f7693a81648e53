"""Fine-tunes that the web page starts: a folder for each, and a process of its own while it trains."""
