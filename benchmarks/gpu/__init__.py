"""What only a GPU can show, prepared for one that is lent for some minutes: see `__main__`."""
