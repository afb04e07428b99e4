"""`python -m rlmoptimizer`: the command line, where the command `rlmoptimizer` is not on the path."""

from rlmoptimizer.command_line.app import main

if __name__ == "__main__":
    main()
