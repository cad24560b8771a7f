from __future__ import annotations

from sit_deploy.models import CONFIGS, get_config
from sit_deploy.models.cost import cost
from tests.helpers.command_line import CommandLine


def test_json_is_the_configurations(cli: CommandLine) -> None:
    rows = cli("models", "--json").json()
    assert [row["name"] for row in rows] == list(CONFIGS)
    for row, config in zip(rows, CONFIGS.values(), strict=True):
        figures = cost(config)
        assert row == {
            "name": config.name,
            "aliases": list(config.aliases),
            "parameters": figures.parameters,
            "macs": figures.macs,
            "image_size": config.image_size,
            "stage_blocks": list(config.stage_blocks),
            "tokens": list(config.tokens()),
            "teacher": config.teacher,
            "top1": config.top1,
        }


def test_table_has_every_model_and_its_figures(cli: CommandLine) -> None:
    result = cli("models")
    assert result.err == ""
    rows = {
        words[0]: words for line in result.out.splitlines() if (words := line.split()) and words[0] in CONFIGS
    }
    assert list(rows) == list(CONFIGS)
    # as the paper's table has them
    assert rows["sit_s"] == ["sit_s", "25.63", "4.03", "224", "9,3,2,2", "196,98,49,24", "83.1"]
    assert rows["sit_deit_s"] == ["sit_deit_s", "22.31", "3.01", "224", "6,2,2,2", "196,98,49,24"]
    assert rows["lvvit_l"] == ["lvvit_l", "147.17", "56.05", "288", "24", "324", "85.3"]
    for config in CONFIGS.values():
        assert all(f"{alias} = {config.name}" in result.out for alias in config.aliases)
    assert max(map(len, result.out.splitlines()[:-1])) <= 80


def test_what_a_schedule_costs_before_anything_is_trained(cli: CommandLine) -> None:
    row = cli("models", "--model", "sit_nano", "--kept", "49,30,18,9", "--json").json()
    figures = cost(get_config("sit_nano", kept=(49, 30, 18, 9)))
    teacher = cost(CONFIGS["lvvit_nano"])
    assert row == {
        "name": "sit_nano", "parameters": figures.parameters, "macs": figures.macs, "image_size": 112, "num_classes": 1000,
        "stage_blocks": [2, 2, 2, 2], "keeping_ratio": None, "tokens": [49, 30, 18, 9], "method": "tsm",
        "unslimmed": {
            "name": "lvvit_nano", "parameters": teacher.parameters, "macs": teacher.macs,
            "macs_ratio": teacher.macs / figures.macs, "token_share": (49 + 30 + 18 + 9) / (4 * 49),
        },
    }  # fmt: skip
    shown = cli("models", "--model", "sit_nano", "--kept", "49,30,18,9").out
    assert (
        f"Slimmed by TSMs: {teacher.macs / figures.macs:.2f}x fewer MACs than the unslimmed lvvit_nano; its blocks see 54% of"
        in shown
    )
    # what the ratio gives is the ratio's, and a model that slims nothing has nothing beside it
    assert (
        cli("models", "--model", "sit_nano", "--kept", "49,24,12,6", "--json").json()["keeping_ratio"] == 0.5
    )
    whole = cli(
        "models", "--model", "lvvit_nano", "--image-size", "128", "--num-classes", "10", "--json"
    ).json()
    assert (whole["unslimmed"], whole["tokens"], whole["method"]) == (None, [64], None)
    assert whole["macs"] == cost(CONFIGS["lvvit_nano"], 128, 10).macs


def test_a_schedule_that_cannot_be(cli: CommandLine) -> None:
    assert (
        cli.refuses("models", "--kept", "49,30,18,9") == "--kept is of one model; pass --model NAME with it"
    )
    assert "token schedule (49, 4, 0, 0)" in cli.refuses(
        "models", "--model", "sit_nano", "--keeping-ratio", "0.1"
    )
    assert "divisible by 16, got 100x100" in cli.refuses(
        "models", "--model", "sit_nano", "--image-size", "100"
    )
    assert "class count must be at least 2" in cli.refuses(
        "models", "--model", "sit_nano", "--num-classes", "1"
    )
    assert "begin with 64, or take" in cli.refuses(
        "models", "--model", "sit_nano", "--image-size", "128", "--kept", "49,24,12,6"
    )
