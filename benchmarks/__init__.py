"""One script per claim. Each prints its theory, its ceiling and its baseline, and ends with one line of JSON."""
