"""Evaluations in the workers of an executor: threads of this process, other processes, other machines."""
