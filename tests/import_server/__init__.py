"""Start Python processes of tests as forks of one that has imported torch and transformers, which takes seconds.

`forking_popen` makes `subprocess` do so for each ``python -m pytest``, ``python -m pytest_llmperf`` and their scripts,
with this interpreter or with that of another environment in which the same libraries are found.
The process that a test sees, signals and waits for is a `stand_in`: it hands its arguments, folder, environment and
standard streams to the `server`, and ends as the fork does. Forks start their own processes likewise.

A process starts plainly if it runs something else, if a variable that libraries read on import has another value, or
with ``PLAIN_PYTHON`` in its environment. Only tests do this, and only on Linux: no measurement that counts is a fork.
"""
