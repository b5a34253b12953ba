"""How torch's threads wait for each other. OpenMP reads it once, when torch is imported: it must be set before."""

# Threads that wait by spinning hold a core: on a loaded machine torch is 25 times slower so. Threads that sleep at once
# are woken too late for the many short operations of a step. So they spin for about as long as Python takes from one
# operation to the next (some 0.1 ms), and sleep then.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
