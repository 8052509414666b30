"""What holds for every domain, asked of each."""
