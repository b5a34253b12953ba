"""A conversation in a terminal: with a model or a composition, compared, coloured by what the composition did."""
