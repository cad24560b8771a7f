"""How long a model takes on an engine, for any token schedule: a few dozen are timed, all others predicted.

    target = Target(get_config("lvvit_s"), "onnxruntime", "int8", batch=1)
    table = LatencyTable.measure(target, path=Path("latency.json"))
    table.predict((9, 3, 2, 2), (196, 98, 49, 24)).ms

`table` measures and predicts; `parts` is what it knows, `probes` what it times next; `bench` builds and times, with the graphs of
`graphs`; `table_file` is where it is kept, by what `target` says of model, engine and machine.
"""

from __future__ import annotations

from sit_deploy.latency.schedule import Schedule
from sit_deploy.latency.table import LatencyTable, Prediction
from sit_deploy.latency.target import Target

__all__ = ["LatencyTable", "Prediction", "Schedule", "Target"]
