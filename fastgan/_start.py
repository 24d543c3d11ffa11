"""When this program began, noted before torch is imported: that takes a second, and a run says so.

Not the age of the process, which may have been a shell's before it was Python's.
"""

import time

BEGAN = time.perf_counter() - time.process_time()
"""Seconds by time.perf_counter(); what Python itself had taken by now kept a processor busy."""
