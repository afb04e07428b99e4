"""Threads and event loops that outlive single calls. Knows neither kernels nor programs."""
