"""The conductor's process: starts asked-for stages as soon as what they need is there; survives the terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from picollm.run import conductor

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m stages.conductor", description="Conduct one run.")
    parser.add_argument("--run", required=True, type=Path, help="the run folder")
    sys.exit(conductor.main(parser.parse_args().run))
