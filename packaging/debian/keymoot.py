#!/usr/lib/keymoot/bin/python3 -I
"""The command keymoot: an interpreter that sees its own libraries and those of Python, nothing else."""

import sys

from appliance.cli import main

if __name__ == "__main__":
    sys.exit(main())
