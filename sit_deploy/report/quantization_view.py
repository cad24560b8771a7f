"""What a page shows of 8 bits: how much runs in them and how fast, and every layer."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from sit_deploy.report import speedup_text
from sit_deploy.report.build_types import BuildReport
from sit_deploy.report.figure import figure
from sit_deploy.report.kernels_text import eight_bit_products, kernels_note, told_by


def quantization_view(report: BuildReport) -> dict[str, Any] | None:
    """Return what a page says of 8 bits, None of a build without."""
    quantization = report.quantization
    if not quantization:
        return None
    low = [row for row in quantization.layers if row.precision != "high"]
    text = (
        f"{len(low)} of {len(quantization.layers)} layers, {quantization.share_of_macs:.1%} of the work, in {report.precision}; the "
        f"rest in {quantization.rest}. Calibrated by {quantization.method}. "
    )
    if quantization.speed:
        gain = speedup_text.sentence(report.precision, quantization.speed.over, quantization.speed.speedup())
        text += f"{gain[0].upper()}{gain[1:]}, at batch {quantization.speed.batch_size} when it was built."
    else:
        text += "Speed was not measured: the engine does not run on the machine that built it."
    if products := eight_bit_products(report.engine.details):
        kernels = kernels_note(products, report.precision, told_by(report.engine.details))
        text += f" {kernels[0].upper()}{kernels[1:]}."
    columns = ["alone dB"] if any(row.alone_db is not UNSET for row in low) else []
    rows = []
    for row in quantization.layers:
        cells = [figure(row.scale, ".3g"), str(row.shift or "—"), figure(row.sqnr_db, ".1f")]
        cells += [figure(None if row.alone_db is UNSET else row.alone_db, ".1f") for _ in columns]
        rows.append((row.layer, row.precision, *cells, row.reason))
    head = ("layer", "runs in", "scale", "shift", "SQNR dB", *columns, "why")
    return {"what": text, "head": head, "rows": rows}
