"""A short program of a user of sit-deploy, as docs/python.md teaches it. tests/sit_deploy/test_api.py type-checks it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from typing_extensions import assert_type

import sit_deploy


def main(images: list[str]) -> int:
    try:
        request = sit_deploy.BuildRequest("sit_s", Path("sit_s-fp16"), precision="fp16")
        bundle = sit_deploy.build(request, progress=show)
        assert_type(bundle, sit_deploy.Bundle)
        with sit_deploy.load(bundle.path, threads=2) as classify:
            assert_type(classify, sit_deploy.Classifier)
            logits: np.ndarray = classify(images)
            print(logits.argmax(1))
            best = classify.predict(images[0], top=3)
            assert_type(best, sit_deploy.Prediction)
            assert_type(best.name, str)
            assert_type([one.probability for one in best], list[float])
            assert_type(classify.predict(images), list[sit_deploy.Prediction])
            with Path(images[0]).open("rb") as stream:
                assert_type(classify.predict(stream), sit_deploy.Prediction)
        checked = sit_deploy.validate(
            sit_deploy.ValidateRequest(bundle.path, data="photos/val", min_agreement=99)
        )
        assert_type(checked, sit_deploy.Validation)
        checked.require()
        timed = sit_deploy.bench(bundle, timing=sit_deploy.TimingOptions(rounds=5, threads=2))
        assert_type(timed, sit_deploy.BenchResult)
        if timed.speedup.doubt is None:
            print(timed.speedup.median)
        request_of_report = sit_deploy.ReportRequest((bundle.path,), data="digits", max_accuracy_drop=1)
        report = sit_deploy.write_report(request_of_report, show, print)
        assert_type(report, sit_deploy.Report)
        print([judged.verdict.headline for judged in report.bundles])
        trained = sit_deploy.train(sit_deploy.TrainRequest("lvvit_nano", "digits", Path("run")))
        assert_type(trained, sit_deploy.Summary)
        with sit_deploy.show_progress():  # the same with options as keywords
            assert_type(sit_deploy.build("sit_s", Path("b"), threads=2), sit_deploy.Bundle)
            assert_type(sit_deploy.validate(bundle.path, data="photos/val"), sit_deploy.Validation)
            assert_type(sit_deploy.write_report((bundle.path,), rounds=0), sit_deploy.Report)
            assert_type(sit_deploy.bench(bundle, rounds=1, seconds=0.5, threads=2), sit_deploy.BenchResult)
            assert_type(sit_deploy.train("sit_nano", "digits", overrides={"epochs": 1}), sit_deploy.Summary)
            assert_type(sit_deploy.slim("sit_s", Path("photos"), seconds=60), sit_deploy.Slimmed)
    except sit_deploy.GateError as error:
        print(f"not good enough: {error}")
        return error.exit_status
    except sit_deploy.Error as error:
        print(error)
        return error.exit_status
    return 0


def show(step: str, done: int, total: int) -> None:
    print(f"{step}: {done} of {total}")


if __name__ == "__main__":
    raise SystemExit(main(["cat.jpg"]))
