"""The server under attack, over plain HTTP: `python -m tests.soak COMMAND`.

Everything here starts a real `motet serve` in a process of its own, with limits on its memory, and knows nothing of the
server's code: only its command line, its OpenAPI description and its answers. Short forms run with the other tests.
"""
