"""What an expert is: its bundle on disk, whom it fits, and how a person reads it."""
