"""Which rows of a dataset to keep: by a model's confidence, by an expert's information, without duplicates."""
