"""Names the GPUs that this container was given, where the engine's runtime brings nvidia-smi along."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys

signal.alarm(15)
program = shutil.which("nvidia-smi")
names: list[str] = []
if program is not None:
    asked = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    names = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines()
json.dump({"names": names}, sys.stdout)
