"""Messages: how each member reads them, what an answer to them may be, and what it consists of."""
