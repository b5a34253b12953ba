"""What each client does with the server, feature by feature: docs/clients.md shows it, `test_features` runs it."""
