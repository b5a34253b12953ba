"""What stands around every request, whichever endpoint answers it: connections, bodies, keys, errors, logs."""
