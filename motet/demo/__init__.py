"""The demo world: an invented world, a family of small models trained on it, and what is measured with them."""
