"""Settings shared by all tests."""

from hypothesis import settings

# No deadline: the first call of anything loads libraries, and other work shares the machine.
# Derandomised: the same commit gives the same verdict.
settings.register_profile("fastgan", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("fastgan")
