"""A load generator: `motet-load http://127.0.0.1:8000/v1 --model large --rate 2`."""
