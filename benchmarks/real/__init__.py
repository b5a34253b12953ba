"""What Motet claims, measured on real checkpoints: `python -m benchmarks.real --models FOLDER`."""
