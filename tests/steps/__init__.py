"""Effects: what steps do to the world, and what they must not."""
