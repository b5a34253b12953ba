"""The scale-out engine: all members as one composite model inside one vLLM engine.

vLLM schedules, caches and runs; what the members say is composed and drawn by the project's own code, so that the
answers are those of the embedded engine. Importing this package imports nothing; `loading` starts an engine.
"""
