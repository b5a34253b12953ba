"""One experiment for each strategy: does the effect that its paper claims show here?"""
