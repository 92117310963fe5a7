"""What lies in a run directory, by name; files of JSON are named beside the types of what they hold.

`fedgh_app.runs.history`, `.result`, `.records` and `.checkpoints` have those.
"""

CONFIG = "config.yaml"  # resolved
MODEL = "model.safetensors"  # of a cluster model.<cluster>.safetensors
MODEL_CARD = "MODEL_CARD.md"
PLOTS = "plots"
CHECKPOINTS = "checkpoints"
CLIENTS = "clients"  # what simulated clients keep; of clients that train alone, a run directory each
LOG = "flower.log"
STOP = "stop"  # somebody wants the run to end
