"""What did this expert learn? It is set against the model that it was before."""
