"""A Ray Serve deployment of several servers behind one address."""
