"""`python -I -S begin.py SYSTEM PYTHON SCRIPT ARGUMENT...`: run a script as on that system.

`-I -S`, with which a kernel's guardian starts, leaves out `sitecustomize`.
"""

import os
import runpy
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lacking import install

del sys.path[0]
_, system, python, *sys.argv = sys.argv
install(system, python)
runpy.run_path(sys.argv[0], run_name="__main__")
