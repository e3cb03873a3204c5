"""`python -m dstack.agent.gpu`: the accelerators of this machine as JSON, for whoever has no agent to ask."""

import dataclasses
import json
import sys

from dstack.agent.gpu.detect import detect

gpus, driver = detect()
json.dump({"gpus": [dataclasses.asdict(gpu) for gpu in gpus], "driver_version": driver}, sys.stdout)
