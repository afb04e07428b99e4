"""The kernel's operating-system process: its launch, its files and sockets, its limits and its end. Knows no cells."""
